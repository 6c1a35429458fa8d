//! Manual pages and completions, from the declarations that the binaries parse their arguments by.

use std::fs;
use std::path::Path;

use anyhow::Result;
use clap::Command;
use clap_complete::Shell;

use crate::put;

/// A page for the command and one for each of its subcommands, as `man nbd-attach-detach` finds them.
pub(crate) fn manual(tree: &Path, command: &Command) -> Result<()> {
    let pages = tree.join("usr/share/man/man1");
    fs::create_dir_all(&pages)?;
    Ok(clap_mangen::generate_to(command.clone(), pages)?)
}

/// A script per shell, where Debian's shells look.
pub(crate) fn completions(tree: &Path, command: &mut Command) -> Result<()> {
    let name = command.get_name().to_owned();
    for (shell, path) in [
        (Shell::Bash, format!("usr/share/bash-completion/completions/{name}")),
        (Shell::Zsh, format!("usr/share/zsh/vendor-completions/_{name}")),
        (Shell::Fish, format!("usr/share/fish/vendor_completions.d/{name}.fish")),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, command, &name, &mut script);
        put(tree, &path, &script)?;
    }
    Ok(())
}
