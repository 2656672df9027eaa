// Package ops is for operators: it says whether events flow, where they are held up, who is affected and what to do about it,
// and carries that out.
//
// A [Console] looks from outside: at the database, at Redis, and at the processes, each of which answers on its ops listener
// (package internal/app). It returns structs that print as JSON, for the terminal and for whatever else shows them. What cannot
// be reached is part of the answer and not an error: [Console.Status] answers with the database or Redis gone.
//
// Guarantees. A look takes no lock that anybody waits for, and no statement reads a table that grows without an index or a
// limit. An action is carried out and recorded in commitcast.audit in one transaction; where it is carried out by another
// process, it is recorded before and completed after. An action names what the operator saw, and is refused with [ErrConflict]
// if that has changed. What is refused changes nothing.
//
// All methods are safe for concurrent use.
package ops
