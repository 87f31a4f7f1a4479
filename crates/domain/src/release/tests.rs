use super::*;
use proptest::prelude::*;
use std::fmt::Write as _;

const MAA: &str = "https://shared.attest.example";

fn wrap(condition: &str) -> String {
    format!(r#"{{"version":"1.0.0","anyOf":[{{"authority":"{MAA}","allOf":[{condition}]}}]}}"#)
}

fn refusal(document: &str) -> String {
    Policy::parse(document).unwrap_err().to_string()
}

fn meets(condition: &str, claims: &str) -> bool {
    let policy = Policy::parse(&wrap(condition)).unwrap();
    policy.check(MAA, &Json::parse(claims.as_bytes()).unwrap()).is_ok()
}

/// Of the shapes that the service's own examples have: confidential VM, enclave, TDX, container group, several regions.
#[test]
fn published_shapes_parse() {
    let enclave = r#"{"claim":"x-ms-sgx-mrsigner","equals":"9fa4"},{"claim":"x-ms-sgx-mrenclave","equals":"0b1c"},
        {"claim":"x-ms-sgx-svn","greater":1},{"claim":"x-ms-sgx-is-debuggable","equals":false}"#;
    let machine = r#"{"claim":"x-ms-isolation-tee.x-ms-attestation-type","equals":"sevsnpvm"},
        {"claim":"x-ms-isolation-tee.x-ms-compliance-status","equals":"azure-compliant-cvm"}"#;
    let container = r#"{"claim":"x-ms-sevsnpvm-hostdata","equals":"aaa1"},{"claim":"x-ms-attestation-type","equals":"sevsnpvm"},
        {"claim":"x-ms-sevsnpvm-is-debuggable","equals":"false"},{"claim":"x-ms-sevsnpvm-guestsvn","greaterOrEquals":2}"#;
    let domain = r#"{"claim":"tdx_mrtd","equals":"5be5"},{"anyOf":[{"claim":"attester_tcb_status","equals":"UpToDate"},
        {"allOf":[{"claim":"tdx_td_attributes_debug","equals":false},{"claim":"eat_profile","exists":true}]}]}"#;
    for conditions in [enclave, machine, container, domain] {
        for spelling in ["allOf", "anyOf", "allof", "anyof"] {
            let rule = |region: &str| {
                format!(r#"{{"{spelling}":[{conditions}],"authority":"https://{region}.attest.example/"}}"#)
            };
            let document = format!(r#"{{"anyOf":[{},{}],"version":"1.0.0"}}"#, rule("east"), rule("west"));
            assert!(Policy::parse(&document).is_ok(), "{document}");
            assert!(Policy::parse(&document.replace(r#","version":"1.0.0""#, "")).is_ok());
        }
    }
}

#[test]
fn each_mistake_is_told_with_its_place() {
    for (document, words) in [
        ("", "line 1, column 0: not JSON"),
        (r#"{"version":"1.0.0","version":"1.0.0"}"#, "member `version` occurs twice"),
        ("[]", "at its top: expected an object, found an array"),
        ("{}", "at its top: anyOf, the list of authorities, is missing"),
        (r#"{"version":"1.0.1","anyOf":[]}"#, r#"at version: version must be "1.0.0""#),
        (r#"{"version":1,"anyOf":[]}"#, "at version:"),
        (r#"{"allOf":[]}"#, "at allOf: allOf does not stand here"),
        (r#"{"anyOf":[],"anyof":[]}"#, "both anyOf and allOf"),
        (r#"{"anyOf":[]}"#, "at anyOf: the list is empty"),
        (r#"{"anyOf":{}}"#, "at anyOf: expected a list, found an object"),
        (r#"{"anyOf":[1]}"#, "at anyOf[0]: expected an object, found a number"),
        (r#"{"anyOf":[{"allOf":[]}]}"#, "at anyOf[0]: authority is missing"),
        (r#"{"anyOf":[{"authority":1,"allOf":[]}]}"#, "at anyOf[0].authority: authority must be a string"),
        (r#"{"anyOf":[{"authority":"x","allOf":[]}]}"#, "at anyOf[0].authority: an authority is https://"),
        (r#"{"anyOf":[{"authority":"https://a"}]}"#, "at anyOf[0]: neither anyOf nor allOf"),
        (
            r#"{"anyOf":[{"authority":"https://a","allOf":[],"anyof":[]}]}"#,
            "at anyOf[0]: both anyOf and allOf",
        ),
        (r#"{"anyOf":[{"authority":"https://a","allOf":[],"x":1}]}"#, "at anyOf[0]: member `x` is not known"),
        (r#"{"anyOf":[{"authority":"https://a","allOf":[]}]}"#, "at anyOf[0].allOf: the list is empty"),
        (
            r#"{"anyOf":[{"authority":"https://a","allOf":[{}]}],"x":1}"#,
            "at its top: member `x` is not known",
        ),
        (&wrap("{}"), "at anyOf[0].allOf[0]: neither anyOf nor allOf"),
        (&wrap(r#"{"claim":"a"}"#), "at anyOf[0].allOf[0]: no operator; expected one of equals"),
        (&wrap(r#"{"claim":"a","Equals":1}"#), "member `Equals` is not known"),
        (&wrap(r#"{"claim":"a","equals":1,"x":1}"#), "member `x` is not known"),
        (&wrap(r#"{"claim":"a","equals":1,"less":1}"#), "operators equals and less in one condition"),
        (&wrap(r#"{"claim":"a","equals":1,"anyOf":[]}"#), "anyOf or allOf beside claim"),
        (&wrap(r#"{"claim":"","equals":1}"#), "at anyOf[0].allOf[0].claim: claim must be"),
        (&wrap(r#"{"claim":"a..b","equals":1}"#), "parts between dots are not empty"),
        (&wrap(r#"{"claim":1,"equals":1}"#), "claim must be a string"),
        (
            &wrap(r#"{"claim":"a","equals":null}"#),
            "at anyOf[0].allOf[0].equals: equals compares with a string, a number or a boolean, not with null",
        ),
        (
            &wrap(r#"{"claim":"a","notEquals":[]}"#),
            "notEquals compares with a string, a number or a boolean, not with an array",
        ),
        (&wrap(r#"{"claim":"a","equals":{}}"#), "not with an object"),
        (&wrap(r#"{"claim":"a","less":"1"}"#), "less compares with a number, not with a string"),
        (&wrap(r#"{"claim":"a","exists":1}"#), "exists takes true or false, not a number"),
        (&wrap(r#"{"claim":"a","equals":1e300}"#), "too large to be compared exactly"),
        (&wrap(r#"{"claim":"a","greater":18446744073709551616}"#), "too large to be compared exactly"),
    ] {
        let refused = refusal(document);
        assert!(refused.contains(words), "{document}: {refused}");
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let nested = |depth: usize| {
        let open = r#"{"anyOf":["#.repeat(depth);
        wrap(&format!(r#"{open}{{"claim":"a","equals":1}}{}"#, "]}".repeat(depth)))
    };
    assert!(Policy::parse(&nested(MAX_NESTING - 1)).is_ok());
    assert!(refusal(&nested(MAX_NESTING)).contains("more than 32 deep"));
    assert!(refusal(&nested(5_000)).contains("not JSON"), "the reader of JSON has a limit of its own");
    let padded = |bytes: usize| {
        let document = wrap(r#"{"claim":"a","equals":1}"#);
        format!("{document}{}", " ".repeat(bytes - document.len()))
    };
    assert!(Policy::parse(&padded(MAX_POLICY_BYTES)).is_ok());
    assert_eq!(Policy::parse(&padded(MAX_POLICY_BYTES + 1)), Err(PolicyRefused::TooLong));
    let content_type = |text: &str| {
        ReleasePolicy::new(padded(500), Some(text.to_owned()), false)
            .map(|policy| policy.content_type().to_owned())
    };
    assert_eq!(content_type("application/json"), Ok("application/json".into()));
    for text in ["", "a\r\nb", &"x".repeat(129)] {
        assert_eq!(content_type(text), Err(PolicyRefused::ContentType));
    }
}

#[test]
fn operators_compare_by_type_and_value() {
    let claims = r#"{"t":"abc","n":5,"r":1.5,"b":true,"z":null,"o":{"p":{"q":7}},"l":[1],"huge":18446744073709551616}"#;
    for (condition, expected) in [
        (r#""t","equals":"abc""#, true),
        (r#""t","equals":"ABC""#, false),
        (r#""t","notEquals":"abd""#, true),
        (r#""t","notEquals":"abc""#, false),
        (r#""n","equals":5"#, true),
        (r#""n","equals":5.0"#, true),
        (r#""n","equals":"5""#, false),
        (r#""n","notEquals":"5""#, false),
        (r#""n","notEquals":6"#, true),
        (r#""n","less":5"#, false),
        (r#""n","less":6"#, true),
        (r#""n","lessOrEquals":5"#, true),
        (r#""n","greater":4.5"#, true),
        (r#""n","greater":5"#, false),
        (r#""n","greaterOrEquals":5"#, true),
        (r#""r","greater":1"#, true),
        (r#""t","greater":1"#, false),
        (r#""b","equals":true"#, true),
        (r#""b","equals":"true""#, false),
        (r#""b","notEquals":false"#, true),
        (r#""b","exists":true"#, true),
        (r#""b","exists":false"#, false),
        (r#""missing","exists":false"#, true),
        (r#""missing","exists":true"#, false),
        (r#""missing","notEquals":1"#, false),
        (r#""missing","equals":1"#, false),
        (r#""z","exists":true"#, false),
        (r#""o.p.q","equals":7"#, true),
        (r#""o.p","exists":true"#, true),
        (r#""o.p","notEquals":7"#, false),
        (r#""o.p.q.r","exists":false"#, true),
        (r#""o.q","equals":7"#, false),
        (r#""l.0","equals":1"#, false),
        (r#""l","notEquals":2"#, false),
        (r#""huge","greater":1"#, false),
        (r#""huge","notEquals":1"#, false),
    ] {
        assert_eq!(meets(&format!(r#"{{"claim":{condition}}}"#), claims), expected, "{condition}");
    }
}

#[test]
fn groups_are_any_and_all() {
    let (yes, no) = (r#"{"claim":"a","equals":1}"#, r#"{"claim":"b","equals":1}"#);
    let met = |condition: &str| meets(condition, r#"{"a":1,"b":2}"#);
    assert!(met(yes) && !met(no));
    assert!(met(&format!(r#"{{"anyOf":[{no},{yes}]}}"#)));
    assert!(!met(&format!(r#"{{"allOf":[{yes},{no}]}}"#)));
    assert!(met(&format!(r#"{{"allOf":[{yes},{{"anyOf":[{no},{{"allOf":[{yes},{yes}]}}]}}]}}"#)));
    assert!(!met(&format!(r#"{{"anyOf":[{no},{{"allOf":[{yes},{no}]}}]}}"#)));
}

/// The conditions of one authority are not met by the word of another.
#[test]
fn an_authority_answers_for_its_own_conditions() {
    let rule = |authority: &str, value: u8| {
        format!(r#"{{"authority":"{authority}","anyOf":[{{"claim":"a","equals":{value}}}]}}"#)
    };
    let (one, other) = (rule("https://one", 1), rule("https://other/", 2));
    let policy = Policy::parse(&format!(r#"{{"anyOf":[{one},{other}]}}"#)).unwrap();
    let check = |issuer: &str, value: u8| {
        let claims = Json::Object([("a".into(), Json::Number(Number::Integer(value.into())))].into());
        policy.check(issuer, &claims).map_err(|unmet| unmet.to_string())
    };
    assert_eq!(check("https://one", 1), Ok(()));
    assert_eq!(check("https://one/", 1), Ok(()));
    assert_eq!(check("https://other", 2), Ok(()));
    assert_eq!(
        check("https://one", 2),
        Err("the condition on claim `a` at anyOf[0].anyOf[0] is not met".into())
    );
    assert_eq!(
        check("https://other", 1),
        Err("the condition on claim `a` at anyOf[1].anyOf[0] is not met".into())
    );
    for issuer in
        ["", "https://on", "https://one//", "https://ONE", "http://one", "https://one/x", "https://third"]
    {
        assert_eq!(check(issuer, 1), Err(format!("the policy names no authority `{issuer}`")));
    }
}

#[test]
fn an_authority_is_an_address_that_is_read_in_one_way() {
    for (text, origin) in [
        ("https://a", "https://a"),
        ("https://a.example:8443/", "https://a.example:8443"),
        ("https://127.0.0.1:1/attest/v1", "https://127.0.0.1:1"),
        ("https://[::1]:443/x", "https://[::1]:443"),
    ] {
        let authority = Authority::parse(text).unwrap();
        assert_eq!(authority.origin(), origin);
        assert_eq!(Authority::parse(authority.as_str()), Ok(authority));
    }
    let long = format!("https://{}", "a".repeat(MAX_AUTHORITY_BYTES));
    for text in [
        "",
        "https://",
        "https:///x",
        "http://a",
        "HTTPS://a",
        "https://a//",
        "https://a/b//c",
        "https://user@a",
        "https://a:0",
        "https://a:",
        "https://a:65536",
        "https://a:1x",
        "https://a?b",
        "https://a#b",
        "https://a/../b",
        "https://a/%2e%2e/b",
        "https://a\\b",
        "https://a b",
        "https://é",
        "https://[::1",
        "https://[g]",
        "https://[::1]x",
        &long,
    ] {
        assert_eq!(Authority::parse(text), Err(MalformedAuthority), "{text}");
    }
}

fn print(policy: &Policy) -> String {
    let rules: Vec<String> = policy.authorities.iter().map(print_rule).collect();
    format!(r#"{{"anyOf":[{}]}}"#, rules.join(","))
}

fn print_rule(rule: &AuthorityRule) -> String {
    let group = print_group(&rule.conditions);
    format!(r#"{{{group},"authority":"{}"}}"#, rule.authority)
}

fn print_group(group: &Group) -> String {
    let conditions: Vec<String> = group
        .conditions
        .iter()
        .map(|condition| match condition {
            Condition::Group(group) => format!("{{{}}}", print_group(group)),
            Condition::Claim { claim, test } => {
                let claim = serde_json::to_string(claim).unwrap();
                let mut out = format!(r#"{{"claim":{claim},"#);
                let (operator, value) = print_test(test);
                write!(out, r#""{operator}":{value}}}"#).unwrap();
                out
            }
        })
        .collect();
    format!(r#""{}":[{}]"#, if group.all { "allOf" } else { "anyOf" }, conditions.join(","))
}

fn print_test(test: &Test) -> (&'static str, String) {
    let scalar = |scalar: &Scalar| match scalar {
        Scalar::Bool(value) => value.to_string(),
        Scalar::Number(number) => number.to_string(),
        Scalar::Text(text) => serde_json::to_string(text).unwrap(),
    };
    match test {
        Test::Equals(value) => ("equals", scalar(value)),
        Test::NotEquals(value) => ("notEquals", scalar(value)),
        Test::Less(number) => ("less", number.to_string()),
        Test::LessOrEquals(number) => ("lessOrEquals", number.to_string()),
        Test::Greater(number) => ("greater", number.to_string()),
        Test::GreaterOrEquals(number) => ("greaterOrEquals", number.to_string()),
        Test::Exists(value) => ("exists", value.to_string()),
    }
}

fn numbers() -> impl Strategy<Value = Number> {
    prop_oneof![
        any::<i64>().prop_map(|value| Number::Integer(value.into())),
        any::<i32>().prop_map(Number::of_half)
    ]
}

impl Number {
    fn of_half(value: i32) -> Self {
        match Json::parse(format!("{:?}", f64::from(value) / 2.0).as_bytes()) {
            Ok(Json::Number(number)) => number,
            _ => Number::Integer(0),
        }
    }
}

fn scalars() -> impl Strategy<Value = Scalar> {
    prop_oneof![
        any::<bool>().prop_map(Scalar::Bool),
        numbers().prop_map(Scalar::Number),
        "\\PC{0,20}".prop_map(Scalar::Text)
    ]
}

fn tests() -> impl Strategy<Value = Test> {
    prop_oneof![
        scalars().prop_map(Test::Equals),
        scalars().prop_map(Test::NotEquals),
        numbers().prop_map(Test::Less),
        numbers().prop_map(Test::LessOrEquals),
        numbers().prop_map(Test::Greater),
        numbers().prop_map(Test::GreaterOrEquals),
        any::<bool>().prop_map(Test::Exists),
    ]
}

fn groups() -> impl Strategy<Value = Group> {
    let claim = ("[a-z\"\\\\-]{1,8}(\\.[a-z]{1,8}){0,3}", tests())
        .prop_map(|(claim, test)| Condition::Claim { claim, test });
    let condition = claim.prop_recursive(6, 40, 4, |inner| {
        (any::<bool>(), prop::collection::vec(inner, 1..4))
            .prop_map(|(all, conditions)| Condition::Group(Group { all, conditions }))
    });
    (any::<bool>(), prop::collection::vec(condition, 1..4))
        .prop_map(|(all, conditions)| Group { all, conditions })
}

proptest! {
    #[test]
    fn what_is_printed_is_read_again(rules in prop::collection::vec(("https://[a-z]{1,9}(/[a-z]{1,5}){0,2}", groups()), 1..4)) {
        let authorities = rules
            .into_iter()
            .map(|(authority, conditions)| AuthorityRule { authority: Authority::parse(&authority).unwrap(), conditions })
            .collect();
        let policy = Policy { authorities };
        let printed = print(&policy);
        let read = Policy::parse(&printed);
        prop_assert_eq!(read.as_ref(), Ok(&policy), "{}", printed);
        let _ = policy.check("https://a", &Json::parse(printed.as_bytes()).unwrap());
    }

    #[test]
    fn arbitrary_documents_never_panic(document in "\\PC{0,200}", condition in "[\\[\\]{}\",:a-zA-Z0-9.]{0,80}") {
        let _ = Policy::parse(&document);
        let _ = Policy::parse(&wrap(&condition));
        let _ = Authority::parse(&document);
    }

    #[test]
    fn a_damaged_policy_never_panics(position in 0..400_usize, byte in any::<u8>()) {
        let mut bytes = wrap(r#"{"anyOf":[{"claim":"a.b","greater":1.5},{"allOf":[{"claim":"c","exists":false}]}]}"#).into_bytes();
        let position = position % bytes.len();
        bytes[position] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = Policy::parse(&text);
        }
    }
}
