//! `completions` and `man`: scripts that complete commands in a shell, and manual pages. Both are
//! generated from the definition of the command line.

use std::path::Path;

use clap_complete::Shell;

use super::args::ManArgs;
use super::help::definition;
use super::output;
use crate::error::{Error, Result};

/// Prints a completion script for `shell`.
pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut definition(), "flux-fast", &mut script);
    output::raw(&script)
}

/// Prints the manual page, or writes one page per command into a folder.
pub fn man(args: &ManArgs) -> Result<()> {
    let mut command = definition();
    // Gives the subcommands their full names (`flux-fast plan`).
    command.build();
    let Some(folder) = &args.output else {
        return output::raw(&page(command, Path::new("stdout"))?);
    };
    let unwritable = |path: &Path, e: std::io::Error| {
        Error::output(format!("the manual page cannot be written: {e}"))
            .at_path(path)
            .try_("give a folder that you can write to")
    };
    std::fs::create_dir_all(folder).map_err(|e| unwritable(folder, e))?;
    let subcommands: Vec<_> =
        command.get_subcommands().filter(|c| !c.is_hide_set()).cloned().collect();
    for command in [command].into_iter().chain(subcommands) {
        let name = command.get_display_name().unwrap_or(command.get_name()).replace(' ', "-");
        let path = folder.join(format!("{name}.1"));
        let text = page(command.display_name(name), &path)?;
        std::fs::write(&path, text).map_err(|e| unwritable(&path, e))?;
        output::text(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

fn page(command: clap::Command, path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut text)
        .map_err(|e| Error::output(format!("the manual page cannot be made: {e}")).at_path(path))?;
    Ok(text)
}
