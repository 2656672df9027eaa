// Package services gives the demo, the benchmark and the tests the servers they need: Postgres 14 or later, Redis 7.0
// or later, and for some tests a Chromium, or Node.js. The product does not use it.
//
// It finds the programs, installs those that are missing with the system's package manager (apt-get on Debian and
// Ubuntu, Homebrew on macOS; one line says so before), and starts private instances: own data in a temporary folder,
// a free port of 127.0.0.1, a random password, no connection to any service of the system. DATABASE_URL and
// REDIS_URL, when set, are used instead. What cannot be had is a [MissingError] of one line that says what to install.
//
// Started as root, the servers run as user postgres, or nobody where that does not exist, since Postgres refuses root.
//
// Nothing is left behind: [Services.Close] (and Close of [Postgres] and [Redis]) ends the processes and removes their
// folder. If the owner dies without closing, by SIGKILL too, a small shell that waits for its end does the same.
//
// Linux and macOS. All methods are safe for concurrent use, but operations on one server happen one after another.
package services
