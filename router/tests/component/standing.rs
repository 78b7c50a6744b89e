//! A router under maintenance takes nothing, until an operator takes it back; restarts don't.

use wire::facts::RouterState;
use wire::router::{Durability, SetStanding, code, method};
use wire::{ErrorClass, WireError};

use crate::support::{Disk, Router, World};

fn stand(router: &Router, state: RouterState) -> Result<(), WireError> {
    router.call(method::SET_STANDING, &SetStanding { state, by: "tester".into() })
}

#[test]
fn a_router_goes_offline_only_without_vdisks_and_stays_so_over_restarts() {
    let world = World::new();
    let router = world.start();
    let other = world.start_other();
    router.create("demo", 1 << 20);
    let mut disk = Disk::attach(&router, "demo");
    disk.write(0, &[1; 4096], Durability::Durable);
    let refused = stand(&router, RouterState::Offline).unwrap_err();
    assert!(refused.code == code::INVALID && refused.message.contains("demo"), "{refused}");
    router.create("still-takes", 1 << 20);
    for name in ["demo", "still-takes"] {
        router.transfer(name, world.id_of("router-2"));
    }
    stand(&router, RouterState::Offline).unwrap();
    let takes_none = |router: &Router| {
        let error = router.try_create("new", 1 << 20, "default").unwrap_err();
        assert_eq!(error.class, ErrorClass::Retry, "{error}");
        assert!(error.message.contains("takes no vDisks"), "{error}");
    };
    takes_none(&router);
    // A drain doesn't make less of it.
    stand(&router, RouterState::Draining).unwrap();
    router.stop();
    let router = world.start();
    world.until_standing("router-1", RouterState::Draining);
    takes_none(&router);
    stand(&router, RouterState::Online).unwrap();
    router.create("new", 1 << 20);
    router.stop();
    let router = world.start();
    world.until_standing("router-1", RouterState::Online);
    disk.reattach(&other);
    disk.check_all();
    router.stop();
    other.stop();
}
