//! The policy of `deny.toml` holds for every crate we stand on: its licence is allowed, it comes
//! from the registry, and it is none of the banned.
//!
//! `cargo deny check` says the same and more, but takes minutes to install; this is what an
//! ordinary test run can afford. Both read the same file.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// One crate of the lock file.
struct Crate {
    name: String,
    licence: String,
    source: Option<String>,
}

struct Policy {
    licences: Vec<String>,
    banned: Vec<String>,
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member of a workspace")
}

fn policy() -> Policy {
    let text = std::fs::read_to_string(workspace().join("deny.toml")).expect("deny.toml");
    let table: toml::Table = text.parse().expect("deny.toml is TOML");
    let strings = |values: &toml::Value, pick: fn(&toml::Value) -> Option<&str>| {
        let values = values.as_array().expect("a list");
        values.iter().map(|value| pick(value).expect("a string").to_owned()).collect()
    };
    Policy {
        licences: strings(&table["licenses"]["allow"], toml::Value::as_str),
        banned: strings(&table["bans"]["deny"], |ban| ban["name"].as_str()),
    }
}

/// Every crate that a build on this machine downloads; those for other systems are not here to be asked.
fn crates() -> Vec<Crate> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host()])
        .current_dir(workspace())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let package = |package: &Value| Crate {
        name: text(&package["name"]).expect("a name"),
        licence: text(&package["license"]).unwrap_or_default(),
        source: text(&package["source"]),
    };
    metadata["packages"].as_array().expect("packages").iter().map(package).collect()
}

/// The triple of this machine.
fn host() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().expect("rustc runs");
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host").to_owned()
}

/// What the policy has against a crate.
fn objections(policy: &Policy, package: &Crate) -> Vec<String> {
    let mut objections = Vec::new();
    if !may_be_used_under(&package.licence, &policy.licences) {
        objections.push(format!("{}: the licence {:?} is not allowed", package.name, package.licence));
    }
    if policy.banned.contains(&package.name) {
        objections.push(format!("{} is banned", package.name));
    }
    if package.source.as_ref().is_some_and(|source| !source.starts_with("registry+")) {
        objections.push(format!("{} does not come from the registry", package.name));
    }
    objections
}

/// Whether one of the alternatives of an SPDX expression is allowed in all its parts. An
/// expression that mixes both with parentheses is taken apart at the outermost AND.
fn may_be_used_under(expression: &str, allowed: &[String]) -> bool {
    let plain = |part: &str| part.trim().trim_matches(['(', ')']).trim().to_owned();
    let alternatives = |part: &str| part.replace('/', " OR ").split(" OR ").map(plain).collect::<Vec<_>>();
    let licensed = |part: &str| alternatives(part).iter().any(|name| allowed.contains(name));
    if expression.contains('(') {
        return expression.split(" AND ").all(licensed);
    }
    alternatives(expression).iter().any(|all| all.split(" AND ").all(|name| allowed.contains(&plain(name))))
}

#[test]
fn every_crate_keeps_the_policy() {
    let (policy, crates) = (policy(), crates());
    assert!(crates.len() > 50, "the lock file was read");
    let objections: Vec<String> = crates.iter().flat_map(|one| objections(&policy, one)).collect();
    assert!(objections.is_empty(), "{objections:#?}");
}

#[test]
fn objections_can_be_raised() {
    let policy = Policy { licences: vec!["MIT".into(), "Apache-2.0".into()], banned: vec!["bad".into()] };
    let objections = |name: &str, licence: &str, source: &str| {
        let (name, licence, source) = (name.into(), licence.into(), Some(source.into()));
        objections(&policy, &Crate { name, licence, source }).len()
    };
    assert_eq!(objections("good", "MIT OR GPL-3.0", "registry+x"), 0);
    assert_eq!(objections("good", "(MIT OR GPL-3.0) AND Apache-2.0", "registry+x"), 0);
    assert_eq!(objections("good", "MIT AND GPL-3.0", "registry+x"), 1);
    assert_eq!(objections("good", "(MIT OR Zlib) AND GPL-3.0", "registry+x"), 1);
    assert_eq!(objections("good", "", "registry+x"), 1);
    assert_eq!(objections("bad", "MIT", "git+x"), 2);
}
