//! Use cases of principals: an administrator withdraws the tokens that one has, whatever their issuer says. Roles
//! stay: with a new token the principal is as before.

use crate::error::Error;
use crate::pool::{Change, Pool};
use crate::ticket::{Recorded, Ticket};
use domain::access::{Scope, action};
use domain::principal::ObjectId;
use domain::time::IntDate;
use std::sync::Arc;
use storage::{NotBeforeRecord, Record, RecordId};

/// Tokens of `principal` that were issued at `not_before` or earlier are refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotBefore {
    pub principal: ObjectId,
    pub not_before: IntDate,
}

impl Pool {
    pub async fn list_not_before(self: &Arc<Self>, mut ticket: Ticket) -> Recorded<Vec<NotBefore>> {
        ticket.asks::<action::PrincipalRead>(&Scope::Root);
        let listed = ticket
            .authorize::<action::PrincipalRead>(Scope::Root)
            .map(|_| self.index().all_not_before().into_iter().map(view).collect());
        ticket.record(listed).await
    }

    /// Withdraws what was issued up to `not_before`; up to now unless said. What was withdrawn before stays so.
    pub async fn set_not_before(
        self: &Arc<Self>,
        mut ticket: Ticket,
        principal: ObjectId,
        not_before: Option<IntDate>,
    ) -> Recorded<NotBefore> {
        ticket.asks::<action::PrincipalWrite>(&Scope::Root);
        let now = self.now().int_date();
        let not_before = not_before.unwrap_or(now);
        let checked = match ticket.authorize::<action::PrincipalWrite>(Scope::Root) {
            Err(denied) => Err(denied),
            // Otherwise the last administrator could lock everybody out, for good.
            Ok(_) if not_before > now => {
                Err(Error::BadParameter("notBefore must not be in the future".into()))
            }
            Ok(_) => Ok(()),
        };
        if let Err(error) = checked {
            return ticket.record(Err(error)).await;
        }
        ticket.details(format!(
            "tokens of {principal} issued up to {} are withdrawn",
            not_before.unix_seconds()
        ));
        let decide = || {
            let held = self.index().not_before(principal);
            // Somebody may have withdrawn later ones meanwhile, and been told so. Only to clear it lets them in again.
            let not_before = held.as_ref().map_or(not_before, |held| not_before.max(held.value));
            let record = NotBeforeRecord { principal, not_before };
            Ok(Change {
                expectations: vec![(RecordId::NotBefore(principal), held.map(|held| held.stamp))],
                puts: vec![Record::NotBefore(record)],
                deletes: vec![],
                value: view(record),
            })
        };
        self.record_change(ticket, decide).await
    }

    /// Accepts a principal's earlier tokens again, as far as they still hold.
    pub async fn clear_not_before(
        self: &Arc<Self>,
        mut ticket: Ticket,
        principal: ObjectId,
    ) -> Recorded<NotBefore> {
        ticket.asks::<action::PrincipalWrite>(&Scope::Root);
        if let Err(denied) = ticket.authorize::<action::PrincipalWrite>(Scope::Root).map(|_| ()) {
            return ticket.record(Err(denied)).await;
        }
        ticket.details(format!("principal {principal}"));
        let decide = || {
            let held = self.index().not_before(principal).ok_or(Error::NotBeforeNotFound(principal))?;
            Ok(Change {
                expectations: vec![(RecordId::NotBefore(principal), Some(held.stamp))],
                puts: vec![],
                deletes: vec![RecordId::NotBefore(principal)],
                value: view(NotBeforeRecord { principal, not_before: held.value }),
            })
        };
        self.record_change(ticket, decide).await
    }
}

fn view(record: NotBeforeRecord) -> NotBefore {
    NotBefore { principal: record.principal, not_before: record.not_before }
}
