//! Who may import whom.
//!
//! ```text
//! L5  holdfast, tests ─▶ everything                  xtask ▶ nothing of ours
//! L4  edge  router  alba-proxy  asd  arakoon  ▶ own core, runtime, wire, model
//!                                               (+ codec: alba-proxy; + arakoon-client: router, alba-proxy)
//! L3  arakoon-client ▶ runtime, wire, model
//! L2  runtime ▶ wire, model      X-core ▶ wire, model      sim ▶ nothing
//! L1  wire ▶ model               codec ▶ model
//! L0  model ▶ nothing
//! ```
//!
//! A service never imports a service: it speaks the other's protocol. Pure crates have, besides, a list of the foreign
//! crates they may use. It is a list of what is allowed rather than of what is banned, because the next crate with a
//! clock, a socket or a file in it has a name we don't know yet.
//!
//! Tests may import more (`sim`, a client), but a service not even there another service: such a test belongs in `tests/`.
//!
//! Invariant: a crate that isn't in the table is a finding.

use super::Finding;
use super::manifest::{Dependency, Manifest, Purpose};

#[derive(Clone, Copy)]
enum Foreign {
    Any,
    Only(&'static [&'static str]),
}

#[derive(Clone, Copy)]
enum Ours {
    /// All but xtask.
    Everything,
    Only(&'static [&'static str]),
}

struct Rule {
    name: &'static str,
    ours: Ours,
    foreign: Foreign,
}

const SERVICES: [&str; 5] = ["edge", "router", "alba-proxy", "asd", "arakoon"];

const fn rule(name: &'static str, ours: &'static [&'static str], foreign: Foreign) -> Rule {
    Rule { name, ours: Ours::Only(ours), foreign }
}

/// A core decides: nothing it uses may know a clock, a socket, a file or chance.
const CORE: Foreign = Foreign::Only(&["bytes", "thiserror", "crc-fast"]);
/// Raft is a pure state machine; protobuf and slog are its vocabulary.
const RAFT_CORE: Foreign =
    Foreign::Only(&["bytes", "thiserror", "crc-fast", "raft", "protobuf", "slog"]);
const CODEC: Foreign = Foreign::Only(&[
    "bytes",
    "thiserror",
    "crc-fast",
    "reed-solomon-erasure",
    "aes-gcm",
    "aws-lc-rs",
    "zstd",
]);

const RULES: &[Rule] = &[
    rule("model", &[], CORE),
    rule("wire", &["model"], CORE),
    rule("codec", &["model"], CODEC),
    rule("sim", &[], Foreign::Only(&["fastrand", "bytes", "thiserror"])),
    rule("runtime", &["wire", "model"], Foreign::Any),
    rule("edge-core", &["wire", "model"], CORE),
    rule("router-core", &["wire", "model"], CORE),
    rule("alba-proxy-core", &["wire", "model"], CORE),
    rule("asd-core", &["wire", "model"], CORE),
    rule("arakoon-core", &["wire", "model"], RAFT_CORE),
    rule("arakoon-client", &["runtime", "wire", "model"], Foreign::Any),
    rule("edge", &["edge-core", "runtime", "wire", "model"], Foreign::Any),
    rule("router", &["router-core", "arakoon-client", "runtime", "wire", "model"], Foreign::Any),
    rule(
        "alba-proxy",
        &["alba-proxy-core", "arakoon-client", "codec", "runtime", "wire", "model"],
        Foreign::Any,
    ),
    rule("asd", &["asd-core", "runtime", "wire", "model"], Foreign::Any),
    rule("arakoon", &["arakoon-core", "runtime", "wire", "model"], Foreign::Any),
    Rule { name: "holdfast", ours: Ours::Everything, foreign: Foreign::Any },
    Rule { name: "holdfast-tests", ours: Ours::Everything, foreign: Foreign::Any },
    rule("xtask", &[], Foreign::Any),
];

pub fn check(members: &[Manifest]) -> Vec<Finding> {
    let ours: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let mut findings = Vec::new();
    for member in members {
        let Some(rule) = RULES.iter().find(|rule| rule.name == member.name) else {
            findings.push(Finding::new(
                &member.file,
                format!("crate `{}` has no rule in crates/xtask/src/tidy/arrows.rs", member.name),
            ));
            continue;
        };
        for dependency in &member.dependencies {
            let is_ours = ours.contains(&dependency.name.as_str());
            if let Some(what) = objection(rule, dependency, is_ours) {
                findings.push(Finding::new(&member.file, what));
            }
        }
    }
    findings
}

#[expect(
    clippy::fn_params_excessive_bools,
    reason = "a fact about the dependency, named at the only call"
)]
fn objection(rule: &Rule, dependency: &Dependency, is_ours: bool) -> Option<String> {
    let name = dependency.name.as_str();
    match dependency.purpose {
        Purpose::Test => {
            let breaks = SERVICES.contains(&rule.name) && SERVICES.contains(&name);
            breaks.then(|| {
                format!(
                    "a test of service `{}` imports service `{name}`; move it to tests/",
                    rule.name
                )
            })
        }
        Purpose::Normal | Purpose::Build if is_ours => (!may_import_ours(rule.ours, name))
            .then(|| format!("`{}` may not import `{name}`", rule.name)),
        Purpose::Normal | Purpose::Build => match rule.foreign {
            Foreign::Any => None,
            Foreign::Only(allowed) => (!allowed.contains(&name)).then(|| {
                format!(
                    "`{}` is pure and may not use `{name}` (allowed: {})",
                    rule.name,
                    allowed.join(", ")
                )
            }),
        },
    }
}

fn may_import_ours(ours: Ours, name: &str) -> bool {
    match ours {
        Ours::Everything => name != "xtask",
        Ours::Only(allowed) => allowed.contains(&name),
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::parse;
    use super::*;

    /// A workspace of all crates we know, in which `name` has these lines as its dependencies.
    fn findings_for(name: &str, tables: &str) -> Vec<String> {
        let mut members: Vec<Manifest> = RULES
            .iter()
            .filter(|rule| rule.name != name)
            .map(|rule| parse("x", &format!("[package]\nname = \"{}\"", rule.name)).unwrap())
            .collect();
        members.push(parse("x", &format!("[package]\nname = \"{name}\"\n{tables}")).unwrap());
        check(&members).into_iter().map(|finding| finding.what).collect()
    }

    fn normal(dependency: &str) -> String {
        format!("[dependencies]\n{dependency}.workspace = true")
    }

    fn dev(dependency: &str) -> String {
        format!("[dev-dependencies]\n{dependency}.workspace = true")
    }

    #[test]
    fn every_forbidden_arrow_is_found() {
        for (from, to) in [
            ("router", "alba-proxy"),
            ("edge", "router"),
            ("edge", "arakoon-client"),
            ("asd", "codec"),
            ("router", "alba-proxy-core"),
            ("model", "wire"),
            ("wire", "runtime"),
            ("runtime", "codec"),
            ("asd-core", "runtime"),
            ("asd-core", "codec"),
            ("sim", "model"),
            ("xtask", "model"),
            ("holdfast", "xtask"),
            ("arakoon-client", "arakoon-core"),
        ] {
            assert_eq!(
                findings_for(from, &normal(to)),
                [format!("`{from}` may not import `{to}`")],
                "{from} -> {to}"
            );
        }
    }

    #[test]
    fn every_permitted_arrow_passes() {
        for (from, to) in [
            ("router", "arakoon-client"),
            ("alba-proxy", "codec"),
            ("edge", "edge-core"),
            ("asd-core", "wire"),
            ("codec", "model"),
            ("holdfast", "router"),
            ("holdfast-tests", "asd-core"),
            ("arakoon-core", "raft"),
            ("asd", "rocksdb"),
            ("runtime", "tokio"),
        ] {
            assert_eq!(findings_for(from, &normal(to)), [""; 0], "{from} -> {to}");
        }
    }

    #[test]
    fn pure_crates_use_no_crate_that_acts() {
        let pure = ["model", "wire", "codec", "sim", "asd-core", "router-core", "arakoon-core"];
        for from in pure {
            for to in ["tokio", "rocksdb", "rustix", "rustls", "tracing"] {
                let findings = findings_for(from, &normal(to));
                assert_eq!(findings.len(), 1, "{from} -> {to}");
                assert!(findings[0].contains("is pure"), "{findings:?}");
            }
        }
        assert_eq!(findings_for("asd-core", &normal("raft")).len(), 1);
    }

    #[test]
    fn tests_may_import_more_but_a_service_no_other_service() {
        assert_eq!(findings_for("asd-core", &dev("sim")), [""; 0]);
        assert_eq!(findings_for("asd-core", &dev("proptest")), [""; 0]);
        assert_eq!(findings_for("arakoon", &dev("arakoon-client")), [""; 0]);
        let findings = findings_for("router", &dev("alba-proxy"));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].contains("move it to tests/"), "{findings:?}");
    }

    #[test]
    fn build_dependencies_and_target_tables_are_held_to_the_arrows_too() {
        assert_eq!(findings_for("wire", "[build-dependencies]\ntokio = \"1\"").len(), 1);
        let target = "[target.'cfg(unix)'.dependencies]\nrouter.workspace = true";
        assert_eq!(findings_for("edge", target), ["`edge` may not import `router`"]);
    }

    #[test]
    fn an_unknown_crate_is_a_finding() {
        let findings = findings_for("utils", "");
        assert_eq!(findings.len(), 1);
        assert!(findings[0].contains("has no rule"), "{findings:?}");
    }
}
