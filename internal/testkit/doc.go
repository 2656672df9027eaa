// Package testkit is what tests stand on: the binary and its processes, fresh databases, private servers that a test may break, a proxy that breaks
// connections, waiting without guessing. Only _test files import it, and internal/chaos its proxy.
//
// A package's tests begin with
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
//
// which also makes leaked goroutines an error. Servers are real and are started when the first test asks for one; the
// shared ones are those of DATABASE_URL and REDIS_URL if set (`make test` sets both), else private to the test binary.
// What is missing is installed or fails the test: nothing is skipped.
//
// All functions may be called from parallel tests.
package testkit
