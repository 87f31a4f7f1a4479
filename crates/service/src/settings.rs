//! Use cases of settings.

use crate::error::Error;
use crate::pool::{Change, Pool};
use crate::ticket::{Recorded, Ticket};
use domain::access::{Scope, action};
use domain::release::Authority;
use domain::setting::{self, Setting, SettingValue};
use std::collections::BTreeSet;
use std::sync::Arc;
use storage::{Record, RecordId, SettingRecord};

/// A setting as it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SettingView {
    pub setting: Setting,
    pub value: SettingValue,
}

impl Pool {
    pub async fn list_settings(self: &Arc<Self>, mut ticket: Ticket) -> Recorded<Vec<SettingView>> {
        ticket.asks::<action::SettingRead>(&Scope::Root);
        let listed = ticket
            .authorize::<action::SettingRead>(Scope::Root)
            .map(|_| Setting::ALL.map(|setting| self.setting_view(setting)).to_vec());
        ticket.record(listed).await
    }

    pub async fn read_setting(self: &Arc<Self>, mut ticket: Ticket, name: String) -> Recorded<SettingView> {
        ticket.asks::<action::SettingRead>(&Scope::Root);
        let read = ticket
            .authorize::<action::SettingRead>(Scope::Root)
            .and_then(|_| Ok(self.setting_view(named(&name)?)));
        ticket.record(read).await
    }

    pub async fn update_setting(
        self: &Arc<Self>,
        mut ticket: Ticket,
        name: String,
        value: SettingValue,
    ) -> Recorded<SettingView> {
        ticket.asks::<action::SettingWrite>(&Scope::Root);
        let checked = ticket.authorize::<action::SettingWrite>(Scope::Root).and_then(|_| {
            let setting = named(&name)?;
            Ok((setting, setting.check(value)?))
        });
        let (setting, value) = match checked {
            Ok(checked) => checked,
            Err(error) => return ticket.record(Err(error)).await,
        };
        ticket.details(format!("{}={}", setting.name(), shown(&value)));
        let decide = || {
            let held = self.index().setting(setting);
            Ok(Change {
                expectations: vec![(RecordId::Setting(setting), held.map(|held| held.stamp))],
                puts: vec![Record::Setting(SettingRecord { setting, value: value.clone() })],
                deletes: vec![],
                value: SettingView { setting, value: value.clone() },
            })
        };
        self.record_change(ticket, decide).await
    }

    /// Whether a setting that is a boolean is on.
    pub(crate) fn setting(&self, setting: Setting) -> bool {
        self.setting_view(setting).value == SettingValue::Boolean(true)
    }

    /// Whose word counts in release policies.
    pub(crate) fn release_authorities(&self) -> BTreeSet<Authority> {
        match self.setting_view(Setting::ReleaseAuthorities).value {
            SettingValue::Text(text) => setting::release_authorities(&text).unwrap_or_default(),
            SettingValue::Boolean(_) => BTreeSet::new(),
        }
    }

    fn setting_view(&self, setting: Setting) -> SettingView {
        let value = self.index().setting(setting).map_or(setting.default_value(), |held| held.value);
        SettingView { setting, value }
    }
}

fn shown(value: &SettingValue) -> String {
    match value {
        SettingValue::Boolean(value) => value.to_string(),
        SettingValue::Text(text) => text.clone(),
    }
}

fn named(name: &str) -> Result<Setting, Error> {
    Setting::parse(name).ok_or_else(|| Error::SettingNotFound(name.chars().take(64).collect()))
}
