//! `holdfast vdisk recover`: what keeps a vDisk from starting, to the LSN, and who could still bring it; with
//! `--accept-loss` it starts from what is there (L7).
//!
//! Invariant: without the flag nothing changes; with it nothing changes either unless something is missing.

use super::{Ask, LIMIT, Routers};
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::table::{Cell, Paint, Table, Tone};
use model::ByteSize;
use serde_json::{Value, json};
use wire::router::{RecoverVdisk, Recovery, RecoveryPlace, RecoveryVerdict, method};

/// What an operator says to a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Show,
    Accept,
}

/// # Errors
/// When something is missing and its loss isn't accepted; when nobody can say.
pub async fn run(
    routers: &Routers<'_>,
    name: &str,
    loss: Loss,
    format: Format,
) -> Result<(), Failure> {
    let ask = Ask { name, method: method::RECOVER_VDISK, limit: LIMIT };
    let accept_loss = loss == Loss::Accept;
    let body = RecoverVdisk { name: name.to_owned(), accept_loss, by: operator() };
    let recovery: Recovery = routers.ask(ask, &body).await?;
    if format.json {
        print_json(&recovery_json(&recovery))?;
    } else {
        print(&text(&recovery, Paint::on(&std::io::stdout())));
    }
    match recovery.verdict {
        RecoveryVerdict::Whole | RecoveryVerdict::Accepted => Ok(()),
        RecoveryVerdict::Gap => {
            Err(Failure::failed(format!("vDisk {name} doesn't start: {}", lost(&recovery))))
        }
    }
}

/// For the record; nothing is decided by it.
pub fn operator() -> String {
    let user =
        std::env::var("USER").unwrap_or_else(|_| rustix::process::getuid().as_raw().to_string());
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}

/// In one line.
fn lost(recovery: &Recovery) -> String {
    match recovery.through {
        Some(through) => format!("LSNs {} to {through} are missing", recovery.from),
        None => format!("writes from LSN {} on may be missing", recovery.from),
    }
}

fn text(recovery: &Recovery, paint: Paint) -> String {
    let Recovery { name, owner_name, router_name, epoch, head, .. } = recovery;
    let mut out = String::new();
    match recovery.verdict {
        RecoveryVerdict::Whole => {
            return format!(
                "{name}: nothing is missing; it is served by {owner_name}, or by whichever router an edge asks next\n"
            );
        }
        RecoveryVerdict::Gap => {}
        RecoveryVerdict::Accepted => out.push_str(&format!(
            "{name}: the loss is recorded, and {router_name} goes on with what is there\n"
        )),
    }
    for (key, value) in [
        ("vdisk", name.clone()),
        ("owner", format!("{owner_name}, at epoch {epoch}")),
        ("in the backend", format!("through LSN {head}")),
        ("missing", lost(recovery)),
        ("because", recovery.missing.clone()),
    ] {
        out.push_str(&format!("{key:<16}{value}\n"));
    }
    if !recovery.places.is_empty() {
        let mut table =
            Table::new(&["ROUTER", "MAY HOLD IT IN", "ANSWERS", "SHOWS LSNS TO", "BYTES"]);
        for place in &recovery.places {
            table.row(row(place));
        }
        out.push('\n');
        out.push_str(&table.render(paint));
    }
    if recovery.verdict == RecoveryVerdict::Gap {
        let away: Vec<&str> =
            recovery.places.iter().filter(|p| !p.reached).map(|p| p.name.as_str()).collect();
        if !away.is_empty() {
            out.push_str(&format!(
                "\nStart {} if you can: what is missing may be there.\n",
                away.join(" and ")
            ));
        }
        out.push_str(&format!(
            "\n`holdfast vdisk recover {name} --accept-loss` starts it without that, at {router_name}, and for good: what is missing\nisn't taken back when it turns up later. Make sure first that {owner_name} doesn't run any more, unless that is {router_name}.\n"
        ));
    }
    out
}

fn row(place: &RecoveryPlace) -> Vec<Cell> {
    let answers = if place.reached { ("yes", Tone::Good) } else { ("no", Tone::Bad) };
    let shows = match (place.reached, place.last) {
        (_, Some(last)) if place.damaged => Cell::toned(format!("{last}, damaged"), Tone::Bad),
        (_, Some(last)) => Cell::plain(last.to_string()),
        (true, None) => Cell::toned("nothing", Tone::Bad),
        (false, None) => Cell::plain("?"),
    };
    let bytes = if place.bytes == 0 { String::new() } else { ByteSize(place.bytes).to_string() };
    vec![
        Cell::plain(place.name.as_str()),
        Cell::plain(place.what.as_str()),
        Cell::toned(answers.0, answers.1),
        shows,
        Cell::plain(bytes),
    ]
}

fn recovery_json(recovery: &Recovery) -> Value {
    let verdict = match recovery.verdict {
        RecoveryVerdict::Whole => "nothing-missing",
        RecoveryVerdict::Gap => "gap",
        RecoveryVerdict::Accepted => "loss-accepted",
    };
    let places = recovery.places.iter().map(|place| {
        json!({"router": place.name, "what": place.what, "reached": place.reached,
               "last_lsn": place.last.map(|lsn| lsn.0), "bytes": place.bytes, "damaged": place.damaged})
    });
    json!({
        "name": recovery.name,
        "vdisk": recovery.vdisk.to_string(),
        "verdict": verdict,
        "owner": recovery.owner_name,
        "epoch": recovery.epoch.0,
        "router": recovery.router_name,
        "head_lsn": recovery.head.0,
        "missing_from_lsn": (recovery.verdict != RecoveryVerdict::Whole).then_some(recovery.from.0),
        "missing_through_lsn": recovery.through.map(|lsn| lsn.0),
        "missing": recovery.missing,
        "places": places.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Epoch, Lsn, RouterId, VdiskId};

    fn recovery(verdict: RecoveryVerdict) -> Recovery {
        let place = |name: &str, reached, last: Option<u64>| RecoveryPlace {
            router: RouterId(1),
            name: name.into(),
            what: "DTL log of generation 5".into(),
            reached,
            last: last.map(Lsn),
            bytes: 0,
            damaged: false,
        };
        Recovery {
            vdisk: VdiskId(7),
            name: "db".into(),
            verdict,
            owner: RouterId(1),
            owner_name: "router-1".into(),
            epoch: Epoch(4),
            router_name: "router-3".into(),
            head: Lsn(10),
            from: Lsn(15),
            through: Some(Lsn(20)),
            missing: "writes through LSN 20 were promised".into(),
            places: vec![place("router-2", false, None), place("router-3", true, Some(14))],
        }
    }

    #[test]
    fn a_gap_is_told_to_the_lsn_with_who_could_bring_it_and_what_to_do() {
        let shown = text(&recovery(RecoveryVerdict::Gap), Paint::Plain);
        for part in
            ["LSNs 15 to 20", "Start router-2", "--accept-loss", "router-1, at epoch 4", "14"]
        {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let json = recovery_json(&recovery(RecoveryVerdict::Gap));
        assert_eq!((&json["verdict"], &json["missing_from_lsn"]), (&json!("gap"), &json!(15)));
        assert_eq!(json["places"][0]["reached"], json!(false));
    }

    #[test]
    fn without_a_gap_nothing_is_offered() {
        let shown = text(&recovery(RecoveryVerdict::Whole), Paint::Plain);
        assert!(shown.contains("nothing is missing") && !shown.contains("accept"), "{shown}");
        assert_eq!(
            recovery_json(&recovery(RecoveryVerdict::Whole))["missing_from_lsn"],
            Value::Null
        );
    }
}
