//! Newtypes over integers of the wire: unknown values survive, and `Debug` prints names.

/// A newtype over a wire integer with the spec's names for its known values.
macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident($int:ty) { $($(#[$doc:meta])* $value:ident = $number:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$doc])* pub const $value: $name = $name($number);)*
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match *self {
                    $($name::$value => f.write_str(stringify!($value)),)*
                    $name(other) => write!(f, concat!(stringify!($name), "({:#x})"), other),
                }
            }
        }
    };
}

/// A newtype over a wire integer whose bits the spec names.
macro_rules! wire_flags {
    ($(#[$meta:meta])* $name:ident($int:ty) { $($(#[$doc:meta])* $value:ident = $bit:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$doc])* pub const $value: $name = $name(1 << $bit);)*

            /// No bit set.
            pub const NONE: $name = $name(0);

            /// Whether every bit of `other` is set here.
            #[must_use]
            pub const fn contains(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }

            /// The bits that are set here and not in `other`.
            #[must_use]
            pub const fn without(self, other: $name) -> $name {
                $name(self.0 & !other.0)
            }

            /// The spec's names of the bits set here, in bit order; unknown bits are left out.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                [$(($name::$value, stringify!($value)),)*]
                    .into_iter()
                    .filter(move |(bit, _)| self.contains(*bit))
                    .map(|(_, name)| name)
            }
        }

        impl std::ops::BitOr for $name {
            type Output = $name;
            fn bitor(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }
        }

        impl std::ops::BitOrAssign for $name {
            fn bitor_assign(&mut self, other: $name) {
                self.0 |= other.0;
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let names: Vec<&str> = self.names().collect();
                write!(f, "{:#x}({})", self.0, names.join("|"))
            }
        }
    };
}
