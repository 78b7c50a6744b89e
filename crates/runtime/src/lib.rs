//! The real world: sockets, TLS, files, clock, configuration, logging, shutdown.
