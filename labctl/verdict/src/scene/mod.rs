//! What should be there: places, the way of each exchange by mode, protocol and backend, and what a load balancer is
//! free to do. Nothing in here knows of a captured packet but to find out what its capture point is.

pub(crate) mod case;
pub(crate) mod fitness;
pub(crate) mod habit;
pub(crate) mod place;
