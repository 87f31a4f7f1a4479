//! Whether a principal may do something, and by what: the rules are `domain`'s, the assignments are the pool's.

use domain::access::{BuiltInRole, DataAction, RoleAssignment, Scope};
use domain::guid::Guid;
use domain::principal::ObjectId;

const PREFIX: &str = "Microsoft.KeyVault/managedHsm/";

/// A role as a pool defines it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Role {
    pub id: Guid,
    pub name: String,
    pub actions: Vec<DataAction>,
}

impl Role {
    pub fn allows(&self, action: DataAction) -> bool {
        self.actions.contains(&action)
    }
}

/// What is asked.
pub struct Question<'a> {
    pub principal: ObjectId,
    pub groups: &'a [ObjectId],
    pub action: DataAction,
    pub scope: &'a Scope,
}

/// What a pool has to say to it.
#[derive(Debug)]
pub struct Verdict<'a> {
    /// The assignments that allow it. None: it is not allowed.
    pub allowing: Vec<(&'a RoleAssignment, &'a Role)>,
    /// What the principal or its groups hold there besides, with the role if there is such a one.
    pub others: Vec<(&'a RoleAssignment, Option<&'a Role>)>,
    /// The role with the fewest rights that would allow it.
    pub smallest: Option<&'a Role>,
}

pub fn answer<'a>(
    question: &Question<'_>,
    assignments: &'a [RoleAssignment],
    roles: &'a [Role],
) -> Verdict<'a> {
    let concerns = |held: &&RoleAssignment| {
        (held.principal == question.principal || question.groups.contains(&held.principal))
            && held.scope.covers(question.scope)
    };
    let mut verdict = Verdict { allowing: Vec::new(), others: Vec::new(), smallest: None };
    for held in assignments.iter().filter(concerns) {
        match roles.iter().find(|role| role.id == held.role) {
            Some(role) if role.allows(question.action) => verdict.allowing.push((held, role)),
            role => verdict.others.push((held, role)),
        }
    }
    let candidates = roles.iter().filter(|role| role.allows(question.action));
    verdict.smallest = candidates.min_by_key(|role| role.actions.len());
    verdict
}

/// Where an assignment may be that covers `scope`, widest first.
pub fn scopes_above(scope: &Scope) -> Vec<Scope> {
    let mut scopes = vec![Scope::Root, Scope::Keys, scope.clone()];
    scopes.retain(|above| above.covers(scope));
    scopes.dedup();
    scopes
}

/// A built-in role by what this program knows, where the pool's own definition cannot be had.
pub fn built_in(role: BuiltInRole) -> Role {
    let actions = DataAction::ALL.iter().copied().filter(|action| role.allows(*action)).collect();
    Role { id: role.id(), name: role.name().to_owned(), actions }
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
    use domain::access::{RoleTable, action};
    use domain::principal::{Caller, TenantId};

    fn guid(byte: u8) -> Guid {
        Guid([byte; 16])
    }

    fn scope(text: &str) -> Scope {
        Scope::parse(text).unwrap()
    }

    fn assignment(name: u8, at: &str, role: BuiltInRole, principal: u8) -> RoleAssignment {
        RoleAssignment { name: guid(name), scope: scope(at), role: role.id(), principal: guid(principal) }
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
        let roles: Vec<_> = BuiltInRole::ALL.map(built_in).into();
        let held = [
            assignment(1, "/", BuiltInRole::CryptoAuditor, 1),
            assignment(2, "/keys/k", BuiltInRole::CryptoUser, 2),
            assignment(3, "/keys", BuiltInRole::CryptoUser, 3),
        ];
        let at = scope("/keys/k");
        let ask = |groups: &'static [ObjectId], at| {
            answer(
                &Question { principal: guid(1), groups, action: DataAction::Sign, scope: at },
                &held,
                &roles,
            )
        };
        let alone = ask(&[], &at);
        assert!(alone.allowing.is_empty());
        assert_eq!(alone.others.len(), 1);
        assert_eq!(alone.smallest.unwrap().name, "Managed HSM Crypto User");
        let in_group = ask(&[Guid([2; 16])], &at);
        assert_eq!(in_group.allowing.iter().map(|(held, _)| held.name).collect::<Vec<_>>(), [guid(2)]);
        let elsewhere = scope("/keys/other");
        assert!(ask(&[Guid([2; 16])], &elsewhere).allowing.is_empty());
        assert_eq!(ask(&[Guid([3; 16])], &elsewhere).allowing.len(), 1);
    }

    /// The pool decides with `RoleTable`; this must never say otherwise.
    #[test]
    fn agrees_with_what_the_pool_decides() {
        let roles: Vec<_> = BuiltInRole::ALL.map(built_in).into();
        for role in BuiltInRole::ALL {
            for place in ["/", "/keys", "/keys/k", "/keys/other"] {
                let held = [assignment(1, place, role, 1)];
                let caller = Caller {
                    tenant: TenantId::parse("t").unwrap(),
                    object_id: guid(1),
                    groups: vec![],
                    application_id: None,
                    user_principal_name: None,
                };
                for asked in ["/", "/keys", "/keys/k"].map(scope) {
                    let decided = RoleTable::new(held.clone())
                        .authorize::<action::Sign>(&caller, asked.clone())
                        .is_ok();
                    let question =
                        Question { principal: guid(1), groups: &[], action: DataAction::Sign, scope: &asked };
                    let said = !answer(&question, &held, &roles).allowing.is_empty();
                    assert_eq!(said, decided, "{} at {place}, asked at {asked}", role.name());
                }
            }
        }
    }
}
