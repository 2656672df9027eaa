// Package migrations makes, upgrades, removes and checks Commitcast's schema in Postgres. It alone changes tables.
//
// Migrations are the numbered pairs of SQL files beside this one, embedded in the binary. [Up] runs those that a
// database does not have yet, each in one transaction together with its record in commitcast.migration, and then
// River's own, which put River's tables into the same schema. [Down] goes back, [Status] says where a database
// stands, and [Check] lets a process refuse to start on a schema that does not fit its binary.
//
// Up and Down hold a session advisory lock, so any number of processes may call them at once; the second finds
// nothing left to do. They need a direct connection to the primary, not a pooler that shares sessions. What the
// database or role sets as default (isolation level, read-only, timeouts) does not affect them. Errors are one line
// and never hold a password.
//
// All functions are safe for concurrent use.
package migrations
