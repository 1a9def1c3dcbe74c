//! What is a store path and what is not, and why not.

use super::*;

type Reason = fn(String) -> ParseError;

const H: &str = "0njnh3x9rb4hh40rpc0dwc3w75vjl545";

fn base(name: &str) -> String {
    format!("{H}-{name}")
}

#[test]
fn names_that_nix_accepts() {
    let longest = "n".repeat(211);
    for name in
        ["hello", "hello-2.12.1", "a", "+-._?=", "Cargo.lock", "x.drv", ".gitignore", "a.drv.out", &longest]
    {
        let path = StorePath::parse(&base(name)).unwrap();
        assert_eq!((path.hash_part(), path.name(), path.to_string()), (H, name, base(name)));
    }
    assert!(StorePath::parse(&base("x.drv")).unwrap().is_derivation());
    assert!(!StorePath::parse(&base("x.drv.out")).unwrap().is_derivation());
}

#[test]
fn names_that_it_refuses_with_the_reason() {
    let cases: [(String, Reason); 14] = [
        (String::new(), ParseError::Hash),
        ("hello".into(), ParseError::Hash),
        (H.into(), ParseError::Hash),
        (format!("{H}_x"), ParseError::Hash),
        (format!("e{}-x", &H[1..]), ParseError::Hash),
        (format!("o{}-x", &H[1..]), ParseError::Hash),
        (format!("t{}-x", &H[1..]), ParseError::Hash),
        (format!("u{}-x", &H[1..]), ParseError::Hash),
        (format!("A{}-x", &H[1..]), ParseError::Hash),
        (".tmp-link-1-2".into(), ParseError::Temporary),
        ("tmp-12-0".into(), ParseError::Temporary),
        (base(""), ParseError::EmptyName),
        (base(&"n".repeat(212)), ParseError::TooLong),
        (base("..-x"), ParseError::Dots),
    ];
    for (given, expected) in cases {
        assert_eq!(StorePath::parse(&given), Err(expected(given.clone())), "{given}");
    }
    assert_eq!(StorePath::parse(".links"), Err(ParseError::Links));
    for bad in [' ', '/', '~', 'ä', '\n', '\0', ':'] {
        let base = base(&format!("x{bad}y"));
        assert_eq!(StorePath::parse(&base), Err(ParseError::Character { base: base.clone(), bad }));
    }
    // A character of several bytes across the place where the name begins.
    assert!(StorePath::parse(&format!("{}ä-x", &H[..31])).is_err());
}

#[test]
fn store_directories() {
    assert_eq!(StoreDir::new("/nix/store/").unwrap().as_str(), "/nix/store");
    for bad in ["", "/", "nix/store", "/nix//store", "/nix/../store", "/nix/./store"] {
        assert_eq!(StoreDir::new(bad), Err(ParseError::StoreDir(bad.into())), "{bad}");
    }
}

#[test]
fn full_paths() {
    let dir = StoreDir::new("/nix/store").unwrap();
    let full = format!("/nix/store/{}", base("x"));
    assert_eq!(dir.full(&dir.parse(&full).unwrap()), full);
    for bad in
        ["", "/nix/store", "/nix/store/", "/nix/storex", &base("x"), &format!("/nix/store2/{}", base("x"))]
    {
        assert!(matches!(dir.parse(bad), Err(ParseError::NotInStore { .. } | ParseError::Hash(_))), "{bad}");
    }
    assert!(dir.parse(&format!("{full}/bin")).is_err());
    assert!(dir.parse(&format!("/nix/store/../store/{}", base("x"))).is_err());
}

#[test]
fn serde_is_the_base_name() {
    let path = StorePath::parse(&base("x")).unwrap();
    let json = serde_json::to_string(&path).unwrap();
    assert_eq!(json, format!("\"{}\"", base("x")));
    assert_eq!(serde_json::from_str::<StorePath>(&json).unwrap(), path);
    assert!(serde_json::from_str::<StorePath>("\".links\"").is_err());
}
