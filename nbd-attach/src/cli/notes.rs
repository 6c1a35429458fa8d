//! What stands below the help of each command.

use crate::exit;

/// What stands below the help of the whole command.
pub(super) fn whole() -> String {
    format!("{EXAMPLES}\n\n{}\n\n{FILES}", exit::TABLE)
}

const EXAMPLES: &str = "\
Examples:
  nbd-attach attach nbd://server/disk              prints the device, for example /dev/nbd0
  nbd-attach attach nbd+unix:///?socket=/run/nbd.sock --device /dev/nbd3
  nbd-attach status
  nbd-attach info nbd://server                     what the server offers
  nbd-attach detach /dev/nbd0

A device that outlives its server, and this command:
  nbd-attach attach --keep --id data nbds://server/disk --tls-certificates /etc/pki/nbd
  nbd-attach watch                                 what happens to the devices, as it happens
  nbd-attach detach data

Attaching and detaching need root (CAP_SYS_ADMIN); looking does not.";

const FILES: &str = "\
Files:
  /run/nbd-attach      what is remembered of each device; lost, it is made again by the next attach or keep
  /etc/nbd-attach.tab  what is attached at boot, see `nbd-attach up`";

pub(super) const ATTACH_NOTES: &str = "\
Without --keep nothing stays resident: once attached, the kernel holds the connections. When the server \
dies, a request in flight fails with an I/O error after --timeout, and everything after it fails at once. \
A server that needs longer than that for one request, a large flush for example, is taken for dead. \
With --timeout 0 such a request hangs for ever and so does whoever waits for it.
With --keep this process stays until the device is detached. Requests wait while the server is away, and \
those in flight are sent again once --timeout has passed. A server that comes back with another export, \
fewer bytes, other flags or an epoch that says that it has lost writes is refused, and the log says why. \
Only servers of this project have an epoch; of others the size, flags, block sizes and, while the device is mounted, \
the identifiers of what lies on it have to do. \
SIGHUP has it read certificates and look names up again. SIGTERM ends it if nothing uses the device, SIGINT in any \
case; the device stays attached. The same command with the same --id, or `nbd-attach keep`, takes it up again. With \
--json it prints a line per event.
With nbds:// the kernel encrypts: it needs its tls module, and a server on TCP.
--dead-connection-timeout without --keep only helps when something else reconnects.";

pub(super) const DETACH_NOTES: &str = "\
Without --force the device must be neither mounted, nor swapped to, nor held by another device, \
nor open in a program, nor used by anybody whom the kernel does not name, and everything written must have reached \
the server. With --force data may be lost.";

pub(super) const WATCH_NOTES: &str = "\
It begins with the devices that are attached and goes on until it is ended. Of devices that nobody keeps \
(see attach --keep) only the kernel tells that a connection has died, and not which.";

pub(super) const KEEP_NOTES: &str = "\
For a device whose keeper has ended, or that was attached without --keep, by this tool and since the machine \
was started. The kernel does not tell which of its connections are dead, so new ones are offered to it: at \
once, whenever it says that one has died, and from time to time.";

pub(super) const UP_NOTES: &str = "\
The table has a line per device: a name, a URI and options of `nbd-attach attach` without their dashes, joined \
by commas:

  data   nbd://server/disk
  vault  nbds://server/vault   connections=4,tls-certificates=/etc/pki/nbd

Every entry is attached with --keep and --id NAME. With the units installed, `systemctl start \
nbd-attach@data` does it, /dev/disk/by-id/nbd-data appears, and a line of /etc/fstab that mounts it needs \
no more than _netdev. The option noauto leaves an entry alone at boot.";
