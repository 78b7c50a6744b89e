//! One daemon per disk, stores fragments.
