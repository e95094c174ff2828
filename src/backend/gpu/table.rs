//! All operations with their variants.

use super::variant::{Arguments, GpuApi, Runs};
use crate::op::{self, for_operations};

macro_rules! all_operations {
    ($($name:ident)*) => {
        /// A [`GpuApi`] that runs every operation.
        pub trait RunsAll: GpuApi $(+ Runs<op::$name>)* {}

        impl<G: GpuApi $(+ Runs<op::$name>)*> RunsAll for G {}

        /// The names of all operations.
        pub fn operations() -> Vec<&'static str> {
            vec![$(<op::$name as Arguments>::NAME),*]
        }

        /// The variants of the operation `name` on the GPU `G`, best first, each with what it
        /// needs; none if there is no such operation.
        pub fn names<G: RunsAll>(name: &str) -> Option<Vec<(&'static str, G::Needs)>> {
            $(if name == <op::$name as Arguments>::NAME {
                return Some(names_of::<G, op::$name>());
            })*
            None
        }
    };
}
for_operations!(all_operations);

fn names_of<G: Runs<O>, O: Arguments>() -> Vec<(&'static str, G::Needs)> {
    G::tables().into_iter().flatten().map(|v| (v.name, v.needs)).collect()
}
