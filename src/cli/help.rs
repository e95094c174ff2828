//! The definition of the command line with the help texts of each command: several commands have
//! the same options with other defaults, and some of them have no effect there.

use clap::CommandFactory;

use super::args::Cli;

/// The definition of the command line: [`Cli`], with the help texts of the commands that use the
/// same options with other defaults, and without the options that have no effect there.
pub fn definition() -> clap::Command {
    let help = |mut command: clap::Command, texts: &[(&'static str, &'static str)]| {
        for (id, text) in texts {
            command = command.mut_arg(id, |option| option.help(*text));
        }
        command
    };
    // They are still accepted, so that a command can be turned into a plan by one word.
    let hide = |mut command: clap::Command, ids: &[&'static str]| {
        for id in ids {
            command = command.mut_arg(id, |option| option.hide(true));
        }
        command
    };
    Cli::command()
        .mut_subcommand("plan", |c| help(hide(c, &WITHOUT_EFFECT_ON_A_PLAN), &PLAN_HELP))
        .mut_subcommand("bench", |c| help(hide(c, &["negative", "no_cache"]), &BENCH_HELP))
        .mut_subcommand("again", |c| help(c, &AGAIN_HELP))
}

const WITHOUT_EFFECT_ON_A_PLAN: [&str; 8] =
    ["prompt_file", "negative", "seed", "no_cache", "output", "format", "quality", "preview"];

const PLAN_HELP: [(&str, &str); 2] = [
    ("words", "The prompt; only its LoRA tags matter, so that it may be left out"),
    ("prompt", "The prompt; only its LoRA tags matter, so that it may be left out"),
];

const BENCH_HELP: [(&str, &str); 2] = [
    (
        "prompt",
        "What the image shows, which has no effect on the time [default: a fox, 3D style, on a \
         blue background]",
    ),
    ("seed", "A whole number up to 2^64 - 1, or `random` (or -1) [default: 0]"),
];

const AGAIN_HELP: [(&str, &str); 15] = [
    ("prompt", "What the image shows; `-` reads it from stdin [default: that of the image]"),
    ("negative", "What the image does not show [default: that of the image]"),
    (
        "model",
        "A file, a folder, a name that `flux-fast models` lists, or `embedded` [default: that of \
         the image, looked up by its name and hash]",
    ),
    (
        "count",
        "Number of images, 1 to 64, from one noise stream [default: only this image of its batch]",
    ),
    ("steps", "Denoising steps, 1 to 1000 [default: those of the image]"),
    ("seed", "A whole number up to 2^64 - 1, or `random` (or -1) [default: that of the image]"),
    ("width", "Pixels, a multiple of 16 from 16 to 4096 [default: that of the image]"),
    ("height", "Pixels, like --width [default: that of the image]"),
    ("guidance", "How closely to follow the prompt, 0 to 100 [default: that of the image]"),
    ("cfg_scale", "True classifier-free guidance, 0 to 100; 1 is off [default: that of the image]"),
    (
        "loras",
        "A LoRA (.safetensors, or a folder of PEFT) or its name, and its strength, -100 to 100 \
         [default: 1]; may be given several times, and replaces the LoRAs of the image",
    ),
    (
        "strength",
        "How much --init-img is changed: 0 keeps it, 1 ignores it [default: that of the image]",
    ),
    (
        "init_img",
        "The image that the image was made from, if it was image to image; `-` reads it from stdin",
    ),
    ("mask", "The mask that the image was made with, if it had one"),
    ("mask_blur", "Blurs the edges of the mask, 0 to 256 pixels [default: that of the image]"),
];
