//! `holdfast vdisk detach`: ends the attachment of an edge that doesn't come back, and says what that means.

use wire::router::{AttachMode, EndAttachment, EndedAttachment, method};

use super::{Ask, LIMIT, Routers};
use crate::failure::Failure;
use crate::output::{Format, print, print_json};

/// # Errors
/// When no such edge is attached, or it is connected and `force` isn't set; when nobody can say.
pub async fn run(
    routers: &Routers<'_>,
    body: &EndAttachment,
    format: Format,
) -> Result<(), Failure> {
    let name = &body.name;
    let ask = Ask { name, method: method::END_ATTACHMENT, limit: LIMIT };
    let ended: EndedAttachment = routers.ask(ask, body).await?;
    if format.json {
        print_json(&serde_json::json!({
            "name": name,
            "edge": ended.edge.to_string(),
            "edge_name": ended.edge_name,
            "generation": ended.generation.0,
            "mode": mode(ended.mode),
            "connected": ended.connected,
            "owed_replay": ended.owes_replay,
        }))
    } else {
        print(&text(name, &ended));
        Ok(())
    }
}

const fn mode(mode: AttachMode) -> &'static str {
    match mode {
        AttachMode::Exclusive => "exclusive",
        AttachMode::Shared => "shared",
        AttachMode::ReadOnly => "read-only",
    }
}

fn text(name: &str, ended: &EndedAttachment) -> String {
    let EndedAttachment { edge_name, generation, .. } = ended;
    let mode = mode(ended.mode);
    let mut out =
        format!("{name}: ended {edge_name}'s {mode} attachment, generation {generation}\n");
    if ended.connected {
        out.push_str("It is fenced: its users get I/O errors until they connect anew.\n");
    }
    if ended.owes_replay {
        out.push_str(
            "Others waited for it to send again what it hadn't flushed: that is given up, and they go on.\n",
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{AttachmentGeneration, EdgeId};

    #[test]
    fn what_it_means_is_said() {
        let ended = EndedAttachment {
            edge: EdgeId(7),
            edge_name: "edge-2".into(),
            generation: AttachmentGeneration(3),
            mode: AttachMode::Exclusive,
            connected: false,
            owes_replay: true,
        };
        let said = text("db", &ended);
        assert!(said.contains("edge-2's exclusive attachment, generation 3"), "{said}");
        assert!(said.contains("given up") && !said.contains("I/O errors"), "{said}");
        let said = text("db", &EndedAttachment { connected: true, owes_replay: false, ..ended });
        assert!(said.contains("I/O errors") && !said.contains("given up"), "{said}");
    }
}
