//! Guests, components, messages and directories that are made to harm.
//!
//! The security page lists what Task Host promises, with the tests behind each promise. Here are the
//! attacks: a file for each kind, and in it an enum of its attacks. [`attacks!`] makes a test of
//! each; `case` says what it does and what must follow; [`trial::check`] runs it, and checks after
//! each attack the verdict, the message, the host's memory and descriptors, the cache, and the next
//! task.
//!
//! An attack without a case, and an action of the guest `misbehave` without an attack, do not
//! compile. An attack that the security page does not link to fails a test.

/// The attacks of one kind: an enum, the list of its values, and a test for each.
macro_rules! attacks {
    ($($(#[$doc:meta])* $attack:ident => $test:ident,)*) => {
        #[derive(Clone, Copy, Debug)]
        pub(super) enum Attack { $($(#[$doc])* $attack,)* }

        impl Attack {
            pub(super) const ALL: &[Self] = &[$(Self::$attack),*];
        }

        $(#[test]
        fn $test() {
            super::trial::check(case(Attack::$attack));
        })*
    };
}

mod calls;
mod ends;
mod engine;
mod files;
mod handles;
mod memory;
mod plans;
mod reach;
mod texts;
mod time;

mod actions;
mod trial;

mod cache;
mod compile;
mod kernel;
mod names;
mod places;
mod queue;
mod trees;
