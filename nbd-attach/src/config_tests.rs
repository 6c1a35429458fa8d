//! Proves that what is typed is understood, and that what makes no sense is answered with a sentence.

use super::*;
use clap::Parser;

fn attach(arguments: &[&str]) -> Result<AttachConfig, String> {
    let words = ["nbd-attach", "attach"].iter().chain(arguments);
    match cli::Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
        cli::Command::Attach(typed) => AttachConfig::new(&typed, 4096).map_err(|error| error.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn defaults() {
    let config = attach(&["nbd://host/x"]).unwrap();
    assert_eq!((config.connections, config.device, config.block_size), (1, None, None));
    assert_eq!(config.timeout, Duration::from_secs(60));
    assert_eq!(config.dead_connection_timeout, Duration::ZERO);
    assert_eq!((config.access, config.output), (Access::AsOffered, Output::Human));
}

#[test]
fn a_device_that_is_kept_waits_for_its_server() {
    let config = attach(&["nbd://host/x", "--keep"]).unwrap();
    assert_eq!((config.keep, config.dead_connection_timeout), (Keep::Reconnect, Duration::from_secs(3600)));
    assert_eq!(config.timeout, Duration::from_secs(10));
    let config =
        attach(&["nbd://host/x", "--keep", "--dead-connection-timeout", "infinity", "--wait"]).unwrap();
    assert!(
        config.dead_connection_timeout > Duration::from_secs(9 * 365 * 86400) && config.wait > TIMEOUT_MAX
    );
    let config = attach(&["nbd://host/x", "--wait=7", "--keep", "--dead-connection-timeout", "5"]).unwrap();
    assert_eq!(config.wait, Duration::from_secs(7));
    assert_eq!(config.dead_connection_timeout, Duration::from_secs(5));
}

#[test]
fn every_misuse_gets_a_sentence() {
    for (arguments, part) in [
        (&["http://host/x"][..], "NBD"),
        (&["nbds://host/x"], "--tls-certificates"),
        (&["nbds://host/x", "--tls-certificates", "/nonexistent"], "/nonexistent/ca-cert.pem"),
        (&["nbds+unix:///x?socket=/s"], "encrypts TCP connections only"),
        (&["nbd://host/x", "--tls-certificates", "/etc/pki"], "--tls-certificates is for nbds://"),
        (&["nbd://host/x", "--renew-after", "7"], "--renew-after is for nbds://"),
        (&["nbd://host/x", "--keep", "--timeout", "0"], "--keep needs a --timeout above 0"),
        (&["nbd://host/x", "--id", "nbd0"], "cannot be the id"),
        (&["nbd+vsock://2/x"], "no vsock"),
        (&["nbds+vsock://2/x"], "no vsock"),
        (&["nbd://h", "--device", "/dev/sda"], "say /dev/nbdN"),
        (&["nbd://h", "--device", "/dev/nbd0p1"], "name the whole device"),
        (&["nbd://h", "--connections", "0"], "from 1 to 64"),
        (&["nbd://h", "--connections", "65"], "from 1 to 64"),
        (&["nbd://h", "--timeout", "86401"], "at most 86400"),
        (&["nbd://h", "--dead-connection-timeout", "99999999"], "at most 86400"),
        (&["nbd://h", "--block-size", "3000"], "power of two"),
        (&["nbd://h", "--block-size", "256"], "from 512 to 4096"),
        (&["nbd://h", "--block-size", "8192"], "from 512 to 4096"),
        (&[], "<URI>"),
    ] {
        let error = attach(arguments).err().expect("it is refused");
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}
