//! Whether a principal may do something, and by what: the rules are `domain`'s, the assignments are the pool's.

use domain::access::{DataAction, Role, RoleAssignment, RoleTable, Scope};
use domain::principal::{Caller, ObjectId, TenantId};
use domain::time::IntDate;

const PREFIX: &str = "Microsoft.KeyVault/managedHsm/";

/// What is asked.
pub struct Question<'a> {
    pub principal: ObjectId,
    pub groups: &'a [ObjectId],
    pub action: DataAction,
    pub scope: &'a Scope,
}

/// What a pool has to say to it. Each assignment comes with its role, if there is such a one.
#[derive(Debug)]
pub struct Verdict<'a> {
    /// The assignments that allow it. None: it is not allowed.
    pub allowing: Vec<(&'a RoleAssignment, Option<Role>)>,
    /// What the principal or its groups hold there besides.
    pub others: Vec<(&'a RoleAssignment, Option<Role>)>,
    /// The role with the fewest rights that would allow it.
    pub smallest: Option<Role>,
}

impl Question<'_> {
    /// The answer of a pool with these assignments and roles.
    pub fn answer<'t>(&self, table: &'t RoleTable) -> Verdict<'t> {
        let caller = self.caller();
        let mut allowing: Vec<_> = table.allowing(&caller, self.action, self.scope).collect();
        allowing.sort_by_key(|held| held.name);
        let mut others: Vec<_> = table
            .assignments()
            .filter(|held| caller.is(held.principal) && held.scope.covers(self.scope))
            .filter(|held| !allowing.contains(held))
            .collect();
        others.sort_by_key(|held| held.name);
        let with_role = |held: Vec<&'t RoleAssignment>| {
            held.into_iter().map(|held| (held, table.role(held.role))).collect()
        };
        let smallest =
            table.roles().filter(|role| role.allows(self.action)).min_by_key(|role| actions(role).len());
        Verdict { allowing: with_role(allowing), others: with_role(others), smallest }
    }

    /// Somebody whom this question alone knows: no token says so, and nothing is given for it.
    fn caller(&self) -> Caller {
        Caller {
            tenant: TenantId::parse("asked").expect("a word is a tenant"),
            object_id: self.principal,
            groups: self.groups.to_vec(),
            issued_at: IntDate::default(),
            application_id: None,
            user_principal_name: None,
        }
    }
}

pub fn actions(role: &Role) -> Vec<DataAction> {
    DataAction::ALL.iter().copied().filter(|action| role.allows(*action)).collect()
}

/// Where an assignment may be that covers `scope`, widest first.
pub fn scopes_above(scope: &Scope) -> Vec<Scope> {
    let mut scopes = vec![Scope::Root, Scope::Keys, scope.clone()];
    scopes.retain(|above| above.covers(scope));
    scopes.dedup();
    scopes
}

/// A data action by its full name or the end of it, without regard to case: `sign` is
/// `Microsoft.KeyVault/managedHsm/keys/sign/action`.
pub fn parse_action(text: &str) -> Result<DataAction, String> {
    let asked = short(text);
    let is =
        |name: &str| asked == name || name.strip_prefix("keys/").is_some_and(|operation| asked == operation);
    let found = DataAction::ALL.iter().find(|action| is(&short(action.as_str())));
    found.copied().ok_or_else(|| {
        let known: Vec<_> = DataAction::ALL.iter().map(|action| show_action(*action)).collect();
        format!("no such data action; expected one of {}", known.join(", "))
    })
}

/// The name without what all of them begin and most of them end with.
pub fn show_action(action: DataAction) -> &'static str {
    let name = action.as_str();
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    name.strip_suffix("/action").unwrap_or(name)
}

fn short(text: &str) -> String {
    let text = text.trim_matches('/').to_ascii_lowercase();
    let text = text.strip_prefix(&PREFIX.to_ascii_lowercase()).unwrap_or(&text);
    text.strip_suffix("/action").unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::access::{BuiltInRole, CustomRole, Permission};
    use domain::guid::Guid;

    fn guid(byte: u8) -> Guid {
        Guid([byte; 16])
    }

    fn scope(text: &str) -> Scope {
        Scope::parse(text).unwrap()
    }

    fn assignment(name: u8, at: &str, role: Guid, principal: u8) -> RoleAssignment {
        RoleAssignment { name: guid(name), scope: scope(at), role, principal: guid(principal) }
    }

    #[test]
    fn every_action_is_found_by_each_of_its_names() {
        for &action in DataAction::ALL {
            let name = action.as_str();
            for text in [name, &name.to_ascii_uppercase(), show_action(action)] {
                assert_eq!(parse_action(text), Ok(action), "{text}");
            }
        }
        for (text, action) in [
            ("sign", DataAction::Sign),
            ("keys/Sign/action", DataAction::Sign),
            ("/keys/sign", DataAction::Sign),
            ("read", DataAction::KeyRead),
            ("delete", DataAction::KeyDelete),
            ("deletedkeys/delete", DataAction::DeletedKeyPurge),
            ("roleassignments/write", DataAction::RoleAssignmentWrite),
        ] {
            assert_eq!(parse_action(text), Ok(action), "{text}");
        }
        assert!(parse_action("fly").unwrap_err().contains("keys/sign"));
        assert!(parse_action("").is_err());
    }

    #[test]
    fn scopes_above_are_those_that_cover() {
        let above = |text: &str| scopes_above(&scope(text)).iter().map(Scope::to_string).collect::<Vec<_>>();
        assert_eq!(above("/"), ["/"]);
        assert_eq!(above("/keys"), ["/", "/keys"]);
        assert_eq!(above("/keys/k"), ["/", "/keys", "/keys/k"]);
    }

    #[test]
    fn says_by_what_and_what_would_help() {
        let user = BuiltInRole::CryptoUser.id();
        let table = RoleTable::new([
            assignment(1, "/", BuiltInRole::CryptoAuditor.id(), 1),
            assignment(2, "/keys/k", user, 2),
            assignment(3, "/keys", user, 3),
            assignment(4, "/keys", guid(9), 1),
        ]);
        let ask = |groups: &[ObjectId], at: &str| {
            let question =
                Question { principal: guid(1), groups, action: DataAction::Sign, scope: &scope(at) };
            let Verdict { allowing, others, smallest } = question.answer(&table);
            let names = |held: Vec<(&RoleAssignment, Option<Role>)>| {
                held.into_iter().map(|(held, role)| (held.name.0[0], role.is_some())).collect::<Vec<_>>()
            };
            (names(allowing), names(others), smallest.unwrap().name().to_owned())
        };
        let smallest = "Managed HSM Crypto User".to_owned();
        assert_eq!(ask(&[], "/keys/k"), (vec![], vec![(1, true), (4, false)], smallest.clone()));
        assert_eq!(ask(&[guid(2)], "/keys/k").0, [(2, true)]);
        assert_eq!(ask(&[guid(2)], "/keys/other").0, []);
        assert_eq!(ask(&[guid(3)], "/keys/other").0, [(3, true)]);
    }

    #[test]
    fn a_custom_role_that_is_smaller_is_named_first() {
        let mut table = RoleTable::default();
        let permission = Permission { data_actions: vec![DataAction::Sign], not_data_actions: vec![] };
        table
            .insert_role(CustomRole::new(guid(7), "Signer".into(), String::new(), vec![permission]).unwrap());
        let question =
            Question { principal: guid(1), groups: &[], action: DataAction::Sign, scope: &Scope::Root };
        assert_eq!(question.answer(&table).smallest.unwrap().name(), "Signer");
        let nobodys = Question { action: DataAction::KeyExport, ..question };
        assert!(nobodys.answer(&table).smallest.is_none());
    }
}
