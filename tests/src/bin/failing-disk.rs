//! Serves disks that fail in the kernel, and looks up on the medium what was answered as durable. Needs root;
//! `cargo xtask failing-disk` installs what this needs.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use tests::failing_disk::report::{Cell, MODES, PEERS, STORAGES, Table};
use tests::mount;

/// Serve disks that fail in the kernel, and look up on the medium what was answered as durable.
#[derive(Parser)]
struct Args {
    /// Rounds of 16 writes for each mode and kind of storage
    #[arg(long, value_name = "N", default_value = "10000")]
    rounds: u64,
    /// Only this durability mode
    #[arg(long, value_name = "MODE", value_parser = MODES.to_vec())]
    durability: Option<String>,
    /// Only this kind of storage, as the table calls it; may be given several times
    #[arg(long, value_name = "NAME", value_parser = names(), allow_hyphen_values = true)]
    storage: Vec<String>,
    /// Also nbdkit and qemu-nbd
    #[arg(long)]
    peers: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

fn names() -> Vec<&'static str> {
    STORAGES.iter().map(|storage| storage.name).collect()
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    ensure!(mount::can_mount(), "this needs root and loop devices");
    let chosen = |mode: &&str| args.durability.as_deref().is_none_or(|only| only == *mode);
    let mut cells = Vec::new();
    for storage in STORAGES {
        if !args.storage.is_empty() && !args.storage.iter().any(|name| name == storage.name) {
            continue;
        }
        if !storage.cause.is_available() {
            eprintln!("{}: this kernel has no device mapper", storage.name);
            continue;
        }
        let ours = MODES.iter().copied().filter(chosen);
        // They are tried as they come: the words of a kind of storage are for ours.
        let peers = PEERS.iter().copied().filter(|_| args.peers && storage.args.is_empty());
        for server in ours.chain(peers) {
            cells.push(Cell::of(storage, server, args.rounds, |made, so_far| {
                let (promises, lost) = (so_far.promises, so_far.false_promises);
                eprintln!(
                    "{server} on {}: {made} of {} rounds, {promises} promises, {lost} false",
                    storage.name, args.rounds
                );
            })?);
        }
    }
    if args.json {
        let told: Vec<Value> = cells.iter().map(Cell::to_json).collect();
        println!("{:#}", json!({ "cells": told }));
    } else {
        print!("{}", Table(&cells));
    }
    // What others do is a finding; what ours does wrong is an error.
    let faults: Vec<String> = cells.iter().filter(|cell| cell.is_ours).filter_map(Cell::fault).collect();
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
