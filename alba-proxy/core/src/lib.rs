//! Decides for the proxy: placement, uploads, read plans, manifests.
