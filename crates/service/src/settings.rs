//! Use cases of settings.

use crate::error::Error;
use crate::pool::{Change, Pool};
use crate::ticket::{Recorded, Ticket};
use domain::access::{Scope, action};
use domain::setting::Setting;
use std::sync::Arc;
use storage::{Record, RecordId, SettingRecord};

/// A setting as it stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SettingView {
    pub setting: Setting,
    pub value: bool,
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
        value: bool,
    ) -> Recorded<SettingView> {
        ticket.asks::<action::SettingWrite>(&Scope::Root);
        let setting = ticket.authorize::<action::SettingWrite>(Scope::Root).and_then(|_| named(&name));
        let setting = match setting {
            Ok(setting) => setting,
            Err(error) => return ticket.record(Err(error)).await,
        };
        ticket.details(format!("{}={value}", setting.name()));
        let decide = || {
            let held = self.index().setting(setting);
            Ok(Change {
                expectations: vec![(RecordId::Setting(setting), held.map(|held| held.stamp))],
                puts: vec![Record::Setting(SettingRecord { setting, value })],
                deletes: vec![],
                value: SettingView { setting, value },
            })
        };
        self.record_change(ticket, decide).await
    }

    /// What `setting` is now.
    pub(crate) fn setting(&self, setting: Setting) -> bool {
        self.index().setting(setting).map_or(setting.default_value(), |held| held.value)
    }

    fn setting_view(&self, setting: Setting) -> SettingView {
        SettingView { setting, value: self.setting(setting) }
    }
}

fn named(name: &str) -> Result<Setting, Error> {
    Setting::parse(name).ok_or_else(|| Error::SettingNotFound(name.chars().take(64).collect()))
}
