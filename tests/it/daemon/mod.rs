//! The daemon as a whole: its commands, its configuration, its start and its end.

mod attacks;
mod caches;
mod commands;
mod doctor;
mod ends;
mod exits;
mod failures;
mod first_process;
mod hook;
mod hostile;
mod logind;
mod notify;
mod pipeline;
mod push_stdin;
mod registrations;
mod reload;
mod restart;
mod slow;
mod strangers;
mod verify;
