//! The file that `holdfast apply` takes: read whole, checked whole, and each mistake named with its line, before the pool
//! is asked anything.

use super::super::explain::parse_action;
use super::super::key::{KeyType, parse_curve, parse_operation};
use super::super::moment::Moment;
use domain::access::{DataAction, Scope};
use domain::algorithm::KeySpec;
use domain::key::{KeyOperations, Tags, check_exportable};
use domain::name::KeyName;
use domain::release::ReleasePolicy;
use domain::rotation::{LifetimeAction, Period, RotationPolicy, Trigger};
use domain::setting::{Setting, SettingValue};
use domain::time::IntDate;
use serde::Deserialize;
use std::collections::BTreeMap;
use time::OffsetDateTime;
use toml::Spanned;

const VERSION: u32 = 1;

/// What somebody wants of a pool. A section that is not there says nothing about what it would hold.
#[derive(Debug)]
pub struct Wanted {
    pub settings: Vec<(Setting, SettingValue)>,
    pub roles: Option<Vec<WantedRole>>,
    pub keys: Option<Vec<WantedKey>>,
    pub assignments: Option<Vec<WantedAssignment>>,
}

#[derive(Debug)]
pub struct WantedRole {
    pub name: String,
    pub description: String,
    pub allow: Vec<DataAction>,
    pub except: Vec<DataAction>,
}

/// What is `None` was not named, and is left as it is.
#[derive(Debug)]
pub struct WantedKey {
    pub line: usize,
    pub name: KeyName,
    pub spec: KeySpec,
    pub operations: Option<KeyOperations>,
    pub enabled: Option<bool>,
    pub not_before: Option<IntDate>,
    pub expires: Option<IntDate>,
    pub tags: Option<BTreeMap<String, String>>,
    pub rotation: Option<RotationPolicy>,
    pub exportable: Option<bool>,
    pub release: Option<WantedRelease>,
}

/// A release policy; where `immutable` is `None`, one that is immutable may stay so.
#[derive(Debug)]
pub struct WantedRelease {
    pub policy: ReleasePolicy,
    pub immutable: Option<bool>,
}

#[derive(Debug)]
pub struct WantedAssignment {
    pub line: usize,
    /// An object id, or a name that the client knows.
    pub principal: String,
    /// A role's name or id.
    pub role: String,
    pub scope: Scope,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    version: Spanned<u32>,
    #[serde(default)]
    settings: BTreeMap<String, Spanned<RawSetting>>,
    roles: Option<BTreeMap<String, Spanned<RawRole>>>,
    keys: Option<BTreeMap<String, Spanned<RawKey>>>,
    assignments: Option<Vec<Spanned<RawAssignment>>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected true, false or text")]
enum RawSetting {
    Boolean(bool),
    Text(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRole {
    #[serde(default)]
    description: String,
    allow: Vec<Spanned<String>>,
    #[serde(default)]
    except: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    #[serde(rename = "type")]
    key_type: Spanned<String>,
    size: Option<Spanned<u32>>,
    curve: Option<Spanned<String>>,
    ops: Option<Spanned<Vec<String>>>,
    enabled: Option<bool>,
    not_before: Option<Spanned<String>>,
    expires: Option<Spanned<String>>,
    tags: Option<Spanned<BTreeMap<String, String>>>,
    rotation: Option<Spanned<RawRotation>>,
    exportable: Option<Spanned<bool>>,
    release_policy: Option<Spanned<RawRelease>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRotation {
    rotate_after_create: Option<Spanned<String>>,
    rotate_before_expiry: Option<Spanned<String>>,
    notify_after_create: Option<Spanned<String>>,
    notify_before_expiry: Option<Spanned<String>>,
    expires_after: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRelease {
    document: Option<Spanned<String>>,
    file: Option<Spanned<String>>,
    immutable: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAssignment {
    principal: String,
    role: String,
    scope: Spanned<String>,
}

/// All mistakes that can be seen in the file itself, in the order of lines.
struct Reader<'t> {
    text: &'t str,
    open: &'t OpenDocument<'t>,
    mistakes: Vec<(usize, String)>,
}

/// Reads a document that the file names, or says why it cannot.
pub type OpenDocument<'o> = dyn Fn(&str) -> Result<String, String> + 'o;

/// # Errors
/// Each mistake as `line N: what is wrong`; one alone where the file is not of the form at all.
pub fn read(text: &str, open: &OpenDocument<'_>) -> Result<Wanted, Vec<String>> {
    let raw: RawFile = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_at(text, span.start));
        vec![format!("line {line}: {}", error.message())]
    })?;
    let mut reader = Reader { text, open, mistakes: Vec::new() };
    let wanted = reader.wanted(raw);
    if reader.mistakes.is_empty() {
        return Ok(wanted);
    }
    reader.mistakes.sort();
    Err(reader.mistakes.into_iter().map(|(line, what)| format!("line {line}: {what}")).collect())
}

fn line_at(text: &str, position: usize) -> usize {
    text.bytes().take(position).filter(|byte| *byte == b'\n').count() + 1
}

impl Reader<'_> {
    fn line<T>(&self, at: &Spanned<T>) -> usize {
        line_at(self.text, at.span().start)
    }

    fn mistake<T>(&mut self, at: &Spanned<T>, field: &str, what: impl std::fmt::Display) {
        let line = self.line(at);
        self.mistakes.push((line, format!("{field}: {what}")));
    }

    /// What `parse` reads from the text at `at`, if it does.
    fn read<V>(
        &mut self,
        at: &Spanned<String>,
        field: &str,
        parse: impl FnOnce(&str) -> Result<V, String>,
    ) -> Option<V> {
        parse(at.get_ref()).map_err(|what| self.mistake(at, field, what)).ok()
    }

    fn wanted(&mut self, raw: RawFile) -> Wanted {
        if *raw.version.get_ref() != VERSION {
            let what = format!(
                "{} is not a version that this program knows; it knows {VERSION}",
                raw.version.get_ref()
            );
            self.mistake(&raw.version, "version", what);
        }
        let settings = raw.settings.iter().filter_map(|(name, value)| self.setting(name, value)).collect();
        let roles = raw.roles.map(|roles| {
            self.once("roles", &roles);
            roles.into_iter().filter_map(|(name, role)| self.role(name, &role)).collect()
        });
        let keys = raw.keys.map(|keys| {
            self.once("keys", &keys);
            keys.into_iter().filter_map(|(name, key)| self.key(&name, &key)).collect()
        });
        let assignments = raw.assignments.map(|all| {
            let assignment = |held: Spanned<RawAssignment>| {
                let line = self.line(&held);
                let RawAssignment { principal, role, scope } = held.into_inner();
                let scope = self.read(&scope, "assignments.scope", |text| {
                    Scope::parse(text).map_err(|e| e.to_string())
                })?;
                Some(WantedAssignment { line, principal, role, scope })
            };
            all.into_iter().filter_map(assignment).collect()
        });
        Wanted { settings, roles, keys, assignments }
    }

    fn setting(&mut self, name: &str, held: &Spanned<RawSetting>) -> Option<(Setting, SettingValue)> {
        let Some(setting) = Setting::parse(name) else {
            let known = Setting::ALL.map(Setting::name).join(", ");
            self.mistake(held, "settings", format!("no setting is named `{name}`; there are {known}"));
            return None;
        };
        let value = match held.get_ref() {
            RawSetting::Boolean(value) => SettingValue::Boolean(*value),
            RawSetting::Text(text) => SettingValue::Text(text.clone()),
        };
        let value = setting.check(value).map_err(|error| self.mistake(held, "settings", error)).ok()?;
        Some((setting, value))
    }

    /// Names that differ by case alone are one to the pool.
    fn once<T>(&mut self, section: &str, named: &BTreeMap<String, Spanned<T>>) {
        let mut seen = BTreeMap::new();
        for (name, held) in named {
            if let Some(other) = seen.insert(name.to_ascii_lowercase(), name) {
                self.mistake(held, section, format!("`{name}` and `{other}` are one name to a pool"));
            }
        }
    }

    fn role(&mut self, name: String, held: &Spanned<RawRole>) -> Option<WantedRole> {
        let RawRole { description, allow, except } = held.get_ref();
        let before = self.mistakes.len();
        let mut actions = |names: &[Spanned<String>], field: &str| -> Vec<DataAction> {
            let field = format!("roles.{name}.{field}");
            names.iter().filter_map(|at| self.read(at, &field, parse_action)).collect()
        };
        let (mut allow, mut except) = (actions(allow, "allow"), actions(except, "except"));
        for actions in [&mut allow, &mut except] {
            actions.sort_by_key(|action| action.as_str());
            actions.dedup();
        }
        (self.mistakes.len() == before).then(|| WantedRole {
            name,
            description: description.clone(),
            allow,
            except,
        })
    }

    fn key(&mut self, name: &str, held: &Spanned<RawKey>) -> Option<WantedKey> {
        let line = self.line(held);
        let field = |member: &str| format!("keys.{name}.{member}");
        let raw = held.get_ref();
        let parsed_name =
            name.parse::<KeyName>().map_err(|error| self.mistake(held, &format!("keys.{name}"), error)).ok();
        let curve = match &raw.curve {
            None => Ok(None),
            Some(at) => self.read(at, &field("curve"), parse_curve).map(Some).ok_or(()),
        };
        let key_type = self.read(&raw.key_type, &field("type"), KeyType::parse);
        let size = raw.size.as_ref().map(|size| *size.get_ref());
        let spec = match (key_type, curve) {
            (Some(key_type), Ok(curve)) => key_type
                .spec(size, curve)
                .map_err(|error| {
                    self.mistake(&raw.key_type, &field("type"), error.to_string().replace("--", ""))
                })
                .ok(),
            _ => None,
        };
        let operations = raw.ops.as_ref().and_then(|at| self.operations(at, &field("ops"), spec));
        let not_before = raw.not_before.as_ref().and_then(|at| self.date(at, &field("not_before")));
        let expires = raw.expires.as_ref().and_then(|at| self.date(at, &field("expires")));
        if let (Some(not_before), Some(until), Some(at)) = (not_before, expires, &raw.expires)
            && until <= not_before
        {
            self.mistake(at, &field("expires"), "must be later than not_before");
        }
        if let Some(at) = &raw.tags
            && let Err(error) = Tags::new(at.get_ref().clone())
        {
            self.mistake(at, &field("tags"), error);
        }
        let rotation = raw.rotation.as_ref().and_then(|at| self.rotation(at, name));
        let exportable = raw.exportable.as_ref().map(|at| *at.get_ref());
        let release = raw.release_policy.as_ref().and_then(|at| self.release(at, name));
        if let Some(at) = &raw.exportable
            && exportable != Some(raw.release_policy.is_some())
        {
            let what = match exportable {
                Some(true) => "needs release_policy: nothing else says whom the key may be given to",
                Some(false) | None => "contradicts release_policy, which is for keys that are exportable",
            };
            self.mistake(at, &field("exportable"), what);
        }
        if let (Some(at), Some(release), Some(operations)) = (&raw.ops, &release, operations)
            && let Err(error) = check_exportable(true, Some(&release.policy), operations)
        {
            self.mistake(at, &field("ops"), error);
        }
        Some(WantedKey {
            line,
            name: parsed_name?,
            spec: spec?,
            operations,
            enabled: raw.enabled,
            not_before,
            expires,
            tags: raw.tags.as_ref().map(|tags| tags.get_ref().clone()),
            rotation,
            exportable,
            release,
        })
    }

    fn release(&mut self, at: &Spanned<RawRelease>, name: &str) -> Option<WantedRelease> {
        let field = |member: &str| format!("keys.{name}.release_policy{member}");
        let raw = at.get_ref();
        let immutable = raw.immutable;
        let parse = |document: String| {
            ReleasePolicy::new(document, None, immutable == Some(true)).map_err(|e| e.to_string())
        };
        let policy = match (&raw.document, &raw.file) {
            (Some(document), None) => self.read(document, &field(".document"), |text| parse(text.to_owned())),
            (None, Some(file)) => {
                let open = self.open;
                self.read(file, &field(".file"), |path| {
                    open(path).and_then(parse).map_err(|e| format!("{path}: {e}"))
                })
            }
            (Some(_), Some(_)) | (None, None) => {
                self.mistake(at, &field(""), "expected document, the policy itself, or file, where it is");
                None
            }
        };
        Some(WantedRelease { policy: policy?, immutable })
    }

    fn operations(
        &mut self,
        at: &Spanned<Vec<String>>,
        field: &str,
        spec: Option<KeySpec>,
    ) -> Option<KeyOperations> {
        let parsed: Result<KeyOperations, String> =
            at.get_ref().iter().map(|name| parse_operation(name)).collect();
        let checked = parsed.and_then(|operations| match spec {
            Some(spec) => operations.check(spec).map_err(|error| error.to_string()),
            None => Ok(operations),
        });
        checked.map_err(|what| self.mistake(at, field, what)).ok()
    }

    /// A day or a moment. A time from now would be another one at each run.
    fn date(&mut self, at: &Spanned<String>, field: &str) -> Option<IntDate> {
        self.read(at, field, |text| match text.parse::<Moment>() {
            Ok(moment @ Moment::At(_)) => {
                moment.int_date(OffsetDateTime::UNIX_EPOCH).ok_or_else(|| "beyond the calendar".to_owned())
            }
            Ok(Moment::In(_)) | Err(_) => {
                Err("expected a date such as 2027-01-31 or 2027-01-31T12:00:00Z".to_owned())
            }
        })
    }

    fn rotation(&mut self, at: &Spanned<RawRotation>, name: &str) -> Option<RotationPolicy> {
        let raw = at.get_ref();
        let before = self.mistakes.len();
        let mut period = |at: &Option<Spanned<String>>, member: &str| {
            let field = format!("keys.{name}.rotation.{member}");
            let parse = |text: &str| Period::parse(text).map_err(|error| format!("`{text}` is {error}"));
            at.as_ref().and_then(|at| self.read(at, &field, parse))
        };
        let after = |action, period: Option<Period>| period.map(|held| (action, Trigger::AfterCreate(held)));
        let ahead = |action, period: Option<Period>| period.map(|held| (action, Trigger::BeforeExpiry(held)));
        let actions = [
            after(LifetimeAction::Rotate, period(&raw.rotate_after_create, "rotate_after_create")),
            ahead(LifetimeAction::Rotate, period(&raw.rotate_before_expiry, "rotate_before_expiry")),
            after(LifetimeAction::Notify, period(&raw.notify_after_create, "notify_after_create")),
            ahead(LifetimeAction::Notify, period(&raw.notify_before_expiry, "notify_before_expiry")),
        ];
        let expiry = period(&raw.expires_after, "expires_after");
        if self.mistakes.len() > before {
            return None;
        }
        let epoch = IntDate::from_unix_seconds(0);
        RotationPolicy::new(actions.into_iter().flatten().collect(), expiry, epoch, epoch)
            .map_err(|error| self.mistake(at, &format!("keys.{name}.rotation"), error))
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = include_str!("../../../tests/golden/apply-v1.toml");
    const RELEASE: &str = include_str!("../../../tests/golden/apply-v1-release.toml");
    const POLICY: &str = r#"{"anyof":[{"authority":"https://a","allof":[{"claim":"b","equals":true}]}]}"#;

    fn open(name: &str) -> Result<String, String> {
        match name {
            "policy.json" => Ok(POLICY.to_owned()),
            _ => Err("there is no such file".to_owned()),
        }
    }

    #[test]
    fn a_file_is_read() {
        let wanted = read(GOOD, &open).unwrap();
        assert_eq!(wanted.settings, [(Setting::Rsa15Decryption, SettingValue::Boolean(false))]);
        let roles = wanted.roles.unwrap();
        let [auditor, role] = &roles[..] else { panic!("{roles:?}") };
        assert_eq!(auditor.except, [DataAction::Sign]);
        assert_eq!(role.allow, [DataAction::KeyRead, DataAction::Sign]);
        let keys = wanted.keys.unwrap();
        let [archive, _, key] = &keys[..] else { panic!("{keys:?}") };
        assert_eq!((archive.enabled, archive.rotation.as_ref().unwrap().actions().len()), (Some(false), 2));
        assert_eq!(archive.not_before, Some(IntDate::from_unix_seconds(1_801_396_800)));
        assert_eq!((key.line, key.spec.to_string().as_str()), (9, "EC-HSM P-384"));
        assert_eq!(key.expires, Some(IntDate::from_unix_seconds(1_893_456_000)));
        assert_eq!(key.rotation.as_ref().unwrap().actions().len(), 1);
        assert_eq!((key.enabled, key.not_before), (None, None));
        assert_eq!(wanted.assignments.unwrap()[0].line, 20);
        let empty = read("version = 1", &open).unwrap();
        assert!(empty.keys.is_none() && empty.roles.is_none() && empty.assignments.is_none());
    }

    #[test]
    fn release_policies_and_settings_of_any_type_are_read() {
        let wanted = read(RELEASE, &open).unwrap();
        assert_eq!(
            wanted.settings,
            [
                (Setting::KeyManagementThroughArm, SettingValue::Boolean(true)),
                (
                    Setting::ReleaseAuthorities,
                    SettingValue::Text("https://attest.example, https://other.example".into())
                ),
            ]
        );
        let keys = wanted.keys.unwrap();
        let [sealed, sealed_box, stays] = &keys[..] else { panic!("{keys:?}") };
        let release = sealed.release.as_ref().unwrap();
        assert_eq!((sealed.exportable, release.immutable), (Some(true), Some(true)));
        assert!(release.policy.is_immutable() && release.policy.document().starts_with("{ \"version\""));
        let release = sealed_box.release.as_ref().unwrap();
        assert_eq!((sealed_box.exportable, release.immutable), (None, None));
        assert_eq!((release.policy.document(), release.policy.is_immutable()), (POLICY, false));
        assert_eq!((stays.exportable, stays.release.is_none()), (Some(false), true));
    }

    #[test]
    fn what_is_wrong_with_a_release_policy_is_named_with_its_line() {
        let bad = RELEASE
            .replace("\"equals\"", "\"equal\"")
            .replace("policy.json", "gone.json")
            .replace("https://other", "http://other")
            .replace("exportable = true", "exportable = false");
        let mistakes = read(&bad, &open).unwrap_err();
        for (mistake, expected) in mistakes.iter().zip([
            "line 4: settings: `http://other.example/` is no authority",
            "line 9: keys.sealed.exportable: contradicts release_policy",
            "line 12: keys.sealed.release_policy.document: the release policy is wrong at anyOf[0].allOf[0]: member `equal`",
            "line 21: keys.sealed-box.release_policy.file: gone.json: there is no such file",
        ]) {
            assert!(mistake.starts_with(expected), "{mistake}");
        }
        assert_eq!(mistakes.len(), 4, "{mistakes:?}");

        let key = |more: &str| format!("version = 1\n[keys.k]\ntype = \"RSA\"\n{more}");
        for (more, expected) in [
            ("exportable = true", "line 4: keys.k.exportable: needs release_policy"),
            ("release_policy = {}", "line 4: keys.k.release_policy: expected document"),
            (
                "release_policy = { file = \"policy.json\", document = \"{}\" }",
                "line 4: keys.k.release_policy: expected document",
            ),
            (
                "ops = [\"import\"]\nrelease_policy = { file = \"policy.json\" }",
                "line 4: keys.k.ops: a key with key_ops value `import`",
            ),
            (
                "release_policy = { file = \"policy.json\", mutable = true }",
                "line 4: unknown field `mutable`",
            ),
        ] {
            let mistakes = read(&key(more), &open).unwrap_err();
            assert!(mistakes[0].starts_with(expected), "{mistakes:?}");
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        }
        let number = read("version = 1\n[settings]\nHoldfastAllowRsa15Decryption = 3", &open).unwrap_err();
        assert_eq!(number, ["line 3: expected true, false or text"]);
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let bad = GOOD
            .replace("version = 1", "version = 2")
            .replace("HoldfastAllow", "Allow")
            .replace("\"keys/read\"", "\"fly\"")
            .replace("P-384", "P-385")
            .replace("2030-01-01", "+90d")
            .replace("\"verify\"]", "\"dance\"]")
            .replace("P90D", "90 days")
            .replace("/keys/payroll\"", "/key\"");
        let mistakes = read(&bad, &open).unwrap_err();
        for (mistake, expected) in mistakes.iter().zip([
            "line 1: version: 2 is not",
            "line 4: settings: no setting is named",
            "line 7: roles.Signer.allow: ",
            "line 11: keys.payroll.curve: ",
            "line 12: keys.payroll.ops: ",
            "line 13: keys.payroll.expires: expected a date",
            "line 17: keys.payroll.rotation.rotate_after_create: `90 days` is not a duration",
            "line 23: assignments.scope: ",
        ]) {
            assert!(mistake.starts_with(expected), "{mistake}");
        }
        assert_eq!(mistakes.len(), 8, "{mistakes:?}");
    }

    #[test]
    fn what_is_not_of_the_form_is_refused() {
        for (text, expected) in [
            ("", "missing field `version`"),
            ("version = 1\nkey = 3", "line 2: unknown field `key`"),
            ("version = 1\n[keys.k]\ntype = \"EC\"\nsise = 3", "line 4: unknown field `sise`"),
            ("version = 1\n[keys.k]\nsize = 3", "missing field `type`"),
            ("version = 1\n[keys.a_b]\ntype = \"EC\"", "line 2: keys.a_b: "),
            ("version = 1\n[keys.k]\ntype = \"RSA\"\nsize = 1024", "line 3: keys.k.type: "),
            ("version = 1\n[keys.k]\ntype = \"EC\"\n[keys.K]\ntype = \"EC\"", "are one name to a pool"),
            ("version = 1\n[keys.k]\ntype = \"EC\"\nops = [\"encrypt\"]", "line 4: keys.k.ops: "),
            (
                "version = 1\n[keys.k]\ntype = \"EC\"\n[keys.k.rotation]\nrotate_after_create = \"P9D\"\nexpires_after = \"P1Y\"",
                "line 4: keys.k.rotation: ",
            ),
        ] {
            let mistakes = read(text, &open).unwrap_err();
            assert!(mistakes[0].contains(expected), "{mistakes:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,200}", at in any::<prop::sample::Index>(), insert in "\\PC{0,4}") {
            let _ = read(&text, &open);
            for good in [GOOD, RELEASE] {
                let mut bent = good.to_owned();
                let at = at.index(bent.len());
                if bent.is_char_boundary(at) {
                    bent.insert_str(at, &insert);
                }
                let _ = read(&bent, &open);
            }
        }
    }
}
