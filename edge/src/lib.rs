//! The block front door: NBD towards the user, fail-over client towards the routers.
