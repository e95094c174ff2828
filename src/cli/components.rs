//! The options that give the file of one component: one for each name that `spec` lists, so that
//! the components of a new family need no change here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::error::Error;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::spec::FAMILIES;

/// The names of the options, sorted, each with the title of its component.
pub fn options() -> BTreeMap<&'static str, &'static str> {
    // Families that share an option: the title is that of the first one.
    let components = FAMILIES.components().into_iter().rev();
    components.filter_map(|c| Some((c.option?, c.title))).collect()
}

/// The files that were given, by the name of the option.
#[derive(Debug, Clone, Default)]
pub struct ComponentArgs(pub BTreeMap<&'static str, PathBuf>);

impl Args for ComponentArgs {
    fn augment_args(command: Command) -> Command {
        options().into_iter().fold(command, |command, (name, title)| {
            let help = format!("The {title}, if the model file does not contain it");
            let arg = Arg::new(name).long(name).value_name("PATH|NAME").help(help);
            command.arg(arg.value_parser(value_parser!(PathBuf)))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ComponentArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        for name in options().into_keys() {
            if let Some(path) = matches.get_one::<PathBuf>(name) {
                self.0.insert(name, path.clone());
            }
        }
        Ok(())
    }
}
