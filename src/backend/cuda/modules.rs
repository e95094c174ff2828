//! The embedded PTX, which `kernels/build.py` made, and what each module needs.

use super::arch::Arch;

/// One PTX file.
pub struct Source {
    /// The stem of its name, such as `linear.sm80`.
    pub name: &'static str,
    pub arch: Arch,
    pub ptx: &'static str,
}

macro_rules! sources {
    ($($stem:literal $arch:expr;)*) => {
        /// All modules.
        pub static SOURCES: &[Source] = &[$(Source {
            name: $stem,
            arch: $arch,
            ptx: include_str!(concat!("../../../kernels/ptx/", $stem, ".ptx")),
        }),*];
    };
}

sources! {
    "ceilings.sm80" Arch::From(8, 0);
    "linear.sm80" Arch::From(8, 0);
    "linear_blocks.sm80" Arch::From(8, 0);
    "linear_int8.sm80" Arch::From(8, 0);
    "linear_fp8.sm89" Arch::From(8, 9);
    "linear_hopper.sm90a" Arch::Only(9, 0);
    "attention_hopper.sm90a" Arch::Only(9, 0);
    "attention_int8.sm80" Arch::From(8, 0);
    "attention.sm80" Arch::From(8, 0);
    "conv2d.sm80" Arch::From(8, 0);
    "group_norm.sm80" Arch::From(8, 0);
    "norm.sm80" Arch::From(8, 0);
    "elementwise.sm80" Arch::From(8, 0);
}

/// The entry points of a PTX text, each with the sizes of its parameters in bytes.
pub fn entries(ptx: &str) -> Vec<(&str, Vec<usize>)> {
    fn entry(text: &str) -> Option<(&str, Vec<usize>)> {
        let (name, rest) = text.split_once('(')?;
        let (parameters, _) = rest.split_once(')')?;
        Some((name.trim(), parameters.split(',').filter_map(bytes).collect()))
    }
    ptx.split(".entry ").skip(1).filter_map(entry).collect()
}

/// Bytes of one `.param .u64 name` or `.param .align 8 .b8 name[72]`.
fn bytes(declaration: &str) -> Option<usize> {
    let words = declaration.split_whitespace();
    let unit = words.clone().find_map(|w| match w {
        ".u64" | ".b64" | ".s64" | ".f64" => Some(8),
        ".u32" | ".b32" | ".s32" | ".f32" => Some(4),
        ".u16" | ".b16" | ".s16" | ".f16" => Some(2),
        ".u8" | ".b8" | ".s8" => Some(1),
        _ => None,
    })?;
    let count = words
        .last()?
        .split_once('[')
        .map_or(Some(1), |(_, n)| n.strip_suffix(']')?.parse().ok())?;
    Some(unit * count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_from_the_text() {
        let text = concat!(
            ".visible .entry one(\n\t.param .u64 .ptr .align 1 one_param_0,\n",
            "\t.param .align 64 .b8 one_param_1[128],\n\t.param .u32 x\n)\n{ ret; }\n",
            ".entry two()\n{}"
        );
        assert_eq!(entries(text), [("one", vec![8, 128, 4]), ("two", vec![])]);
    }

    #[test]
    fn every_module_has_entries_and_says_what_it_needs() {
        for source in SOURCES {
            assert!(!entries(source.ptx).is_empty(), "{}", source.name);
            let target = match source.arch {
                Arch::From(major, minor) => format!(".target sm_{major}{minor}\n"),
                Arch::Only(major, minor) => format!(".target sm_{major}{minor}a\n"),
            };
            assert!(source.ptx.contains(&target), "{} is not for {target}", source.name);
        }
    }

    /// A kernel whose declaration differs from its PTX would read beyond its parameters, or run
    /// with the wrong number of threads.
    #[test]
    fn kernels_are_declared_as_they_were_compiled() {
        let families = super::super::kernels();
        let mut declared: Vec<_> = families.iter().map(|k| (k.module, k.entry)).collect();
        let mut compiled: Vec<_> = SOURCES
            .iter()
            .flat_map(|s| entries(s.ptx).into_iter().map(|(entry, _)| (s.name, entry)))
            .collect();
        declared.sort_unstable();
        compiled.sort_unstable();
        assert_eq!(declared, compiled);
        for kernel in families {
            let source = SOURCES.iter().find(|s| s.name == kernel.module).unwrap();
            let (_, sizes) =
                entries(source.ptx).into_iter().find(|(entry, _)| *entry == kernel.entry).unwrap();
            let params = (kernel.params > 0).then_some(kernel.params);
            let expected: Vec<_> =
                [vec![8; kernel.buffers], vec![128; kernel.maps], params.into_iter().collect()]
                    .concat();
            assert_eq!(sizes, expected, "{}: sizes of its parameters", kernel.entry);
            let text = source
                .ptx
                .split(".entry ")
                .find(|t| t.trim_start().starts_with(&format!("{}(", kernel.entry)));
            let head = text.unwrap().split('{').next().unwrap();
            let bound = head
                .split(".maxntid ")
                .nth(1)
                .and_then(|t| t.split([',', '\n']).next())
                .map(str::trim);
            assert_eq!(
                bound,
                Some(kernel.threads.to_string().as_str()),
                "{}: threads of a block",
                kernel.entry
            );
        }
    }
}
