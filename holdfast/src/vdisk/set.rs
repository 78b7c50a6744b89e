//! `holdfast vdisk set`: another DTL for a vDisk while it is served, or none.

use serde_json::Value;
use wire::router::{SetVdisk, VdiskInfo, method};

use super::{Ask, LIMIT, Routers, info_json};
use crate::failure::Failure;
use crate::output::{Format, print, print_json};

/// # Errors
/// When it doesn't go together, or can't be now; the message says why, and the mode is as it was then.
pub async fn run(routers: &Routers<'_>, body: &SetVdisk, format: Format) -> Result<(), Failure> {
    let ask = Ask { name: &body.name, method: method::SET_VDISK, limit: LIMIT };
    let info: VdiskInfo = routers.ask(ask, body).await?;
    let json = info_json(&info);
    if format.json {
        return print_json(&json);
    }
    print(&text(&info.name, &json["details"]["dtl"]));
    Ok(())
}

fn text(name: &str, dtl: &Value) -> String {
    let mode = dtl["mode"].as_str().unwrap_or("unknown");
    if mode == "none" {
        return format!(
            "{name}: DTL none: no second copy of its log; what is flushed lies in its owner's log alone until the backend has it\n"
        );
    }
    let state = dtl["dtl_state"].as_str().unwrap_or("unknown");
    let wanted = match dtl["wanted_targets"].as_u64() {
        Some(count) => format!(", {count} wanted"),
        None => String::new(),
    };
    let targets = dtl["targets"].as_array().map_or(0, Vec::len);
    format!("{name}: DTL {mode}, now {state}; targets: {targets}{wanted}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_it_is_now_is_said() {
        let dtl =
            json!({"mode": "sync", "dtl_state": "degraded", "wanted_targets": 2, "targets": []});
        assert_eq!(text("db", &dtl), "db: DTL sync, now degraded; targets: 0, 2 wanted\n");
        let none = text("db", &json!({"mode": "none"}));
        assert!(none.contains("DTL none") && none.contains("owner's log alone"), "{none}");
    }
}
