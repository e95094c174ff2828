//! How the command line writes what the library's messages name: parameters as options, commands
//! with the program's name.

use crate::message::Words;

/// The words of the command line.
#[derive(Debug, Clone, Copy)]
pub struct Typed;

/// The long option for the parameter `name`.
fn option(name: &str) -> String {
    match name {
        "init" => "--init-img".into(),
        "scheduler" => "--scheduler-config".into(),
        "loras" => "--lora".into(),
        "kernels" => "--kernel".into(),
        name => format!("--{}", name.replace('_', "-")),
    }
}

impl Words for Typed {
    fn parameter(&self, name: &str, value: Option<&str>) -> String {
        match value {
            Some(value) => format!("{} {value}", option(name)),
            None => option(name),
        }
    }

    fn place(&self, name: &str, value: Option<&str>) -> String {
        match name {
            // It is usually given without its option.
            "prompt" => name.to_string(),
            _ => self.parameter(name, value),
        }
    }

    fn command(&self, name: &str, arguments: Option<&str>) -> String {
        match arguments {
            Some(arguments) => format!("`flux-fast {name} {arguments}`"),
            None => format!("`flux-fast {name}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::args::Cli;
    use super::*;
    use crate::message::{COMMANDS, Message, PARAMETERS};

    #[test]
    fn every_parameter_and_command_that_messages_may_name_exists() {
        let cli = Cli::command();
        for name in PARAMETERS {
            let typed = option(name);
            let known =
                |a: &clap::Arg| a.get_long().is_some_and(|long| typed == format!("--{long}"));
            let of_clusters = name.starts_with("nats_") || *name == "broker";
            let serve = cli.find_subcommand("serve").filter(|_| of_clusters);
            let is_there = serve.unwrap_or(&cli).get_arguments().any(known);
            assert!(is_there || of_clusters && !cfg!(feature = "nats"), "{typed}");
        }
        for name in COMMANDS.iter().filter(|name| cfg!(feature = "hub") || **name != "pull") {
            assert!(cli.find_subcommand(name).is_some(), "{name}");
        }
    }

    #[test]
    fn messages_are_shown_as_they_are_typed() {
        let message = Message::from("{cfg_scale=2} or a smaller {ram}; {:inspect FILE}");
        assert_eq!(
            message.in_words(&Typed),
            "--cfg-scale 2 or a smaller --ram; `flux-fast inspect FILE`"
        );
    }
}
