//! Decides for the router: log, overlay, SCOs, TLogs, page map, recovery.
