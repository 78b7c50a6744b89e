//! What tidy reads from a crate's manifest, and the rules for manifests alone.
//!
//! Read from the file rather than from `cargo metadata`, because the rules are about what is written there:
//! metadata has resolved inheritance already, and needs the registry.
//!
//! Invariant: every dependency table counts, target-specific ones included, so no import can hide.

use anyhow::Context;
use toml::{Table, Value};

use super::Finding;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Linked into what we ship.
    Normal,
    /// Used by the crate's own tests alone.
    Test,
    /// Used by its build script.
    Build,
}

#[derive(Debug, Clone)]
pub struct Dependency {
    pub name: String,
    pub purpose: Purpose,
    /// Taken from `[workspace.dependencies]`.
    pub inherited: bool,
}

#[derive(Debug, Clone)]
pub struct Manifest {
    pub file: String,
    pub name: String,
    pub dependencies: Vec<Dependency>,
    pub inherits_lints: bool,
}

/// The paths of the workspace's members.
pub fn members(root_manifest: &str) -> anyhow::Result<Vec<String>> {
    let table: Table = root_manifest.parse().context("parse the workspace's manifest")?;
    let members = table
        .get("workspace")
        .and_then(|workspace| workspace.get("members"))
        .and_then(Value::as_array)
        .context("the manifest has no workspace.members")?;
    members
        .iter()
        .map(|member| member.as_str().map(str::to_owned).context("a member is not a string"))
        .collect()
}

pub fn parse(file: &str, text: &str) -> anyhow::Result<Manifest> {
    let table: Table = text.parse()?;
    let name = table
        .get("package")
        .and_then(|package| package.get("name"))
        .and_then(Value::as_str)
        .context("no package.name")?;
    let mut dependencies = dependencies_of(&table);
    for target in table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values)
    {
        dependencies.extend(target.as_table().map(dependencies_of).unwrap_or_default());
    }
    Ok(Manifest {
        file: file.to_owned(),
        name: name.to_owned(),
        dependencies,
        inherits_lints: says_workspace(table.get("lints")),
    })
}

pub fn check(manifest: &Manifest) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !manifest.inherits_lints {
        findings.push(Finding::new(&manifest.file, "lacks `[lints] workspace = true`"));
    }
    for dependency in manifest.dependencies.iter().filter(|dependency| !dependency.inherited) {
        findings.push(Finding::new(
            &manifest.file,
            format!(
                "dependency `{}` is not inherited; declare it with its reason in the root \
                 [workspace.dependencies] and write `{}.workspace = true`",
                dependency.name, dependency.name
            ),
        ));
    }
    findings
}

fn dependencies_of(table: &Table) -> Vec<Dependency> {
    let kinds = [
        ("dependencies", Purpose::Normal),
        ("dev-dependencies", Purpose::Test),
        ("build-dependencies", Purpose::Build),
    ];
    let mut dependencies = Vec::new();
    for (key, purpose) in kinds {
        for (name, value) in table.get(key).and_then(Value::as_table).into_iter().flatten() {
            // `package = "…"` renames; the arrows are about the real name.
            let name = value.get("package").and_then(Value::as_str).unwrap_or(name).to_owned();
            dependencies.push(Dependency { name, purpose, inherited: says_workspace(Some(value)) });
        }
    }
    dependencies
}

fn says_workspace(value: Option<&Value>) -> bool {
    value.and_then(|value| value.get("workspace")).and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIDY: &str = "[package]\nname = \"asd\"\n[lints]\nworkspace = true\n\
        [dependencies]\nmodel.workspace = true\nbytes = { workspace = true, features = [\"std\"] }\n\
        [dev-dependencies]\ntempfile.workspace = true\n";

    #[test]
    fn a_tidy_manifest_has_no_findings_and_its_purposes_are_told_apart() {
        let manifest = parse("asd/Cargo.toml", TIDY).unwrap();
        assert_eq!(check(&manifest), []);
        assert_eq!(manifest.name, "asd");
        let purposes: Vec<_> =
            manifest.dependencies.iter().map(|d| (d.name.as_str(), d.purpose)).collect();
        assert_eq!(
            purposes,
            [("bytes", Purpose::Normal), ("model", Purpose::Normal), ("tempfile", Purpose::Test)]
        );
    }

    #[test]
    fn missing_lints_and_own_versions_are_found_in_every_table() {
        let text = "[package]\nname = \"x\"\n[dependencies]\na = \"1\"\n\
            [dev-dependencies]\nb = { version = \"2\" }\n[build-dependencies]\nc = { path = \"../c\" }\n\
            [target.'cfg(unix)'.dependencies]\nd = \"4\"\n";
        let findings = check(&parse("x/Cargo.toml", text).unwrap());
        assert_eq!(findings.len(), 5, "{findings:?}");
        for name in ["`[lints]", "`a`", "`b`", "`c`", "`d`"] {
            assert!(findings.iter().any(|finding| finding.what.contains(name)), "{name}");
        }
    }

    #[test]
    fn a_renamed_dependency_goes_by_its_real_name() {
        let text = "[package]\nname = \"x\"\n[dependencies]\nstore = { package = \"rocksdb\", version = \"1\" }\n";
        assert_eq!(parse("x/Cargo.toml", text).unwrap().dependencies[0].name, "rocksdb");
    }

    #[test]
    fn members_are_read_and_their_absence_is_an_error() {
        assert_eq!(members("[workspace]\nmembers = [\"a\", \"b/c\"]").unwrap(), ["a", "b/c"]);
        assert!(members("[package]\nname = \"a\"").is_err());
    }
}
