//! Proves that nothing is left to the driver's memory, and that an answer comes in time whoever is there.

use super::*;

#[test]
fn connect_leaves_nothing_to_the_drivers_memory() {
    let wish = Connect {
        index: None,
        size: 4096,
        block_size: 512,
        timeout: Duration::from_secs(10),
        dead_connection_timeout: Duration::ZERO,
        server_flags: 1,
        backend: "x".into(),
        sockets: vec![],
    };
    let sent = connect_attributes(&wish);
    for always in [
        Attribute::BlockSizeBytes(512),
        Attribute::Timeout(10),
        Attribute::DeadConnTimeout(0),
        Attribute::ServerFlags(1),
        Attribute::BackendIdentifier("x".into()),
    ] {
        assert!(sent.contains(&always), "{always:?}");
    }
    assert!(!sent.iter().any(|attribute| matches!(attribute, Attribute::Index(_))));
    let named = Connect { index: Index::new(7).ok(), ..wish };
    assert!(connect_attributes(&named).contains(&Attribute::Index(7)));
}

#[tokio::test]
async fn a_kernel_without_the_driver_or_with_it_answers_in_time() {
    let client = Client::start(Asker::Here).unwrap();
    match client.status(Duration::from_secs(10)).await {
        Ok(_) | Err(NetlinkError::NoFamily) => {}
        Err(other) => panic!("{other}"),
    }
}
