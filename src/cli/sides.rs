//! `--size` next to `--width` or `--height`: what is typed later wins, as it does where one option
//! is given twice, and what is typed wins over the configuration file.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::args::{Cli, Command, RequestArgs};

/// Drops the width or the height where `--size` was given later. One that was given after `--size`
/// stays next to it. `matches` is what `cli` was read from.
pub fn settle(cli: &mut Cli, matches: &ArgMatches) {
    let inner = matches.subcommand().map_or(matches, |(_, inner)| inner);
    let request = match &mut cli.command {
        None => &mut cli.generate.request,
        Some(Command::Generate(args) | Command::Plan(args)) => &mut args.request,
        Some(Command::Again(args)) => &mut args.request,
        Some(Command::Bench(args)) => &mut args.request,
        Some(_) => return,
    };
    resolve(request, inner);
}

fn resolve(args: &mut RequestArgs, matches: &ArgMatches) {
    let rank = |id: &str| {
        let typed = matches.value_source(id) == Some(ValueSource::CommandLine);
        // Values of the configuration file have no order.
        let place = matches.indices_of(id).and_then(|mut all| all.next_back()).filter(|_| typed);
        (typed, place)
    };
    if args.size.is_none() {
        return;
    }
    let size = rank("size");
    for (id, side) in [("width", &mut args.width), ("height", &mut args.height)] {
        if rank(id) <= size {
            *side = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::super::args::{Cli, Command};
    use super::super::help::definition;

    #[test]
    fn what_is_typed_later_wins() {
        let read = |text: &str| {
            let words = ["flux-fast"].into_iter().chain(text.split(' '));
            let matches = definition().try_get_matches_from(words).unwrap();
            let mut cli = Cli::from_arg_matches(&matches).unwrap();
            super::settle(&mut cli, &matches);
            let request = match cli.command {
                Some(Command::Plan(args)) => args.request.request(),
                _ => cli.generate.request.request(),
            };
            (request.width, request.height)
        };
        assert_eq!(read("fox --size 64x32 -W 96"), (Some(96), Some(32)));
        assert_eq!(read("fox --size 64x32 -H 96"), (Some(64), Some(96)));
        assert_eq!(read("fox -W 96 --size 64x32"), (Some(64), Some(32)));
        assert_eq!(read("fox -W 96 --size 64x32 -H 16"), (Some(64), Some(16)));
        assert_eq!(read("fox -W 96 -H 48"), (Some(96), Some(48)));
        assert_eq!(read("fox --size 64*32"), (Some(64), Some(32)));
        assert_eq!(read("plan --size 64x32 -W 96"), (Some(96), Some(32)));
        assert_eq!(read("fox --size 16:9 -W 96"), (Some(96), None));
        assert_eq!(read("fox -W 96 --size 16:9"), (None, None));
        assert_eq!(read("fox --size 64x32 -W 96 --size 48x48"), (Some(48), Some(48)));
    }
}
