//! What dpkg wants to know of the tree.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

use crate::put;

const SCRIPTS: [(&str, &str); 3] = [
    ("postinst", include_str!("../debian/postinst")),
    ("prerm", include_str!("../debian/prerm")),
    ("postrm", include_str!("../debian/postrm")),
];
const CONFIGURATION: &str = "/etc/nbd-attach.tab\n/etc/nbd-server.toml\n";

/// Writes the control files.
pub(crate) fn control(tree: &Path) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    // Debian's nbd-server has the program of the same name. The binaries are linked statically.
    let text = format!(
        "Package: nbd-stack\n\
         Version: {version}\n\
         Architecture: amd64\n\
         Section: admin\n\
         Priority: optional\n\
         Maintainer: The authors of nbd-stack <nbd-stack@invalid>\n\
         Recommends: kmod, udev\n\
         Conflicts: nbd-server\n\
         Replaces: nbd-server\n\
         Provides: nbd-server\n\
         Description: network block device server, and devices that outlive their server\n \
         nbd-server serves files, block devices and memory over the NBD protocol, with a durability\n \
         chosen by a flag. nbd-attach makes its exports devices of the kernel, encrypted by the kernel if\n \
         wanted, and connects them again when the server or the network has been away. nbd-crash finds out what\n \
         survives a crash.\n"
    );
    put(tree, "DEBIAN/control", text.as_bytes())?;
    put(tree, "DEBIAN/conffiles", CONFIGURATION.as_bytes())?;
    for (name, text) in SCRIPTS {
        let path = format!("DEBIAN/{name}");
        put(tree, &path, text.as_bytes())?;
        fs::set_permissions(tree.join(path), Permissions::from_mode(0o755))?;
    }
    let licences = concat!(include_str!("../../LICENSE-MIT"), "\n\n", include_str!("../../LICENSE-APACHE"));
    put(tree, "usr/share/doc/nbd-stack/copyright", licences.as_bytes())
}
