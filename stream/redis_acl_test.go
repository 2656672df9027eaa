package stream

import (
	"context"
	"errors"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/testkit"
)

// usersFile is what operators give to Redis; the test gives it, too.
const usersFile = "../ops/deploy/redis/users.acl"

// aclUsers starts a Redis with the users of the file, except that the default user stays the test's own. It returns the URLs of
// a worker and a broadcaster.
func aclUsers(t testing.TB) (worker, broadcaster string) {
	t.Helper()
	text, err := os.ReadFile(usersFile)
	if err != nil {
		t.Fatal(err)
	}
	rest, ok := strings.CutPrefix(string(text), "user default off\n")
	if !ok {
		t.Fatal("the default user is not off")
	}
	if doc, err := os.ReadFile("../docs/operations.md"); err != nil || !strings.Contains(string(doc), rest) {
		t.Errorf("docs/operations.md shows other users than %s (%v)", usersFile, err)
	}
	server := testkit.Redis(t, rest)
	login := func(name string) string {
		u, err := url.Parse(server.URL())
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword("commitcast-"+name, "CHANGE-ME-"+name)
		return u.String()
	}
	return login("worker"), login("broadcaster")
}

// split is a worker's stream and a broadcaster's, which are used for what these use them for.
type split struct {
	*Redis        // publishes and ticks
	reads  *Redis // reads and subscribes
}

func (s split) Range(ctx context.Context, ch Channel, after int64, limit int) (Run, error) {
	return s.reads.Range(ctx, ch, after, limit)
}

func (s split) NewSubscription(h Handler) Subscription { return s.reads.NewSubscription(h) }

func (s split) Ping(ctx context.Context) error {
	return errors.Join(s.Redis.Ping(ctx), s.reads.Ping(ctx))
}

func (s split) Close() error { return errors.Join(s.Redis.Close(), s.reads.Close()) }

// The whole suite again, with a user for each side that may do nothing else.
func TestRedisUsers(t *testing.T) {
	t.Parallel()
	worker, broadcaster := aclUsers(t)
	conform(t, func(t testing.TB, maxLen int) Stream {
		cfg := RedisConfig{MaxLen: maxLen, ProbeTimeout: time.Minute}
		return split{newRedisStream(t, worker, cfg), newRedisStream(t, broadcaster, cfg)}
	})
}

// What each of the two must not be able to do.
func TestRedisUsersAreRefused(t *testing.T) {
	t.Parallel()
	worker, broadcaster := aclUsers(t)
	epoch := newEpoch()
	ch := channel(epoch, "t")
	s := newRedisStream(t, worker, RedisConfig{})
	offer(t, s, Offer{Run: run(ch, 1, 3)}, Appended, 4)
	for name, c := range map[string]struct {
		url     string
		allowed []string
		refused []string
	}{
		"worker": {worker, []string{
			"PING", "INFO server", "EXISTS KEY", "SPUBLISH KEY x",
		}, []string{
			"CONFIG GET *", "CONFIG SET maxmemory 1", "FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "DEL KEY", "GET KEY", "SET other x", "XADD other * a b",
			"UNLINK other", "EXISTS other", "PEXPIRE other 1", "SPUBLISH other x", "PUBLISH KEY x", "XRANGE KEY - +", "SSUBSCRIBE KEY", "SUBSCRIBE KEY", "PSUBSCRIBE *",
			"ACL LIST", "ACL SETUSER x", "CLIENT LIST", "CLIENT KILL TYPE normal", "SHUTDOWN", "DEBUG SLEEP 0", "MONITOR", "SCRIPT FLUSH", "FUNCTION LIST", "SAVE",
			"REPLICAOF NO ONE", "RENAME KEY other", "COPY KEY other", "MIGRATE h 1 KEY 0 1", "XTRIM KEY MAXLEN 0", "XDEL KEY 1-0", "MODULE LIST", "CLUSTER INFO",
			"EVAL return_redis.call('FLUSHALL') 0", "EVAL return_redis.call('XADD','other','*','a','b') 1 KEY", "EVAL return_1 1 other",
		}},
		"broadcaster": {broadcaster, []string{
			"PING", "INFO server", "XRANGE KEY - +", "EVAL_RO return_#redis.call('XRANGE',KEYS[1],'-','+') 1 KEY",
		}, []string{
			"XADD KEY * a b", "SPUBLISH KEY x", "PUBLISH KEY x", "DEL KEY", "UNLINK KEY", "FLUSHALL", "FLUSHDB", "CONFIG GET *", "KEYS *", "SCAN 0", "GET KEY",
			"XRANGE other - +", "SSUBSCRIBE other", "SUBSCRIBE KEY", "PSUBSCRIBE *", "ACL LIST", "CLIENT LIST", "CLIENT KILL TYPE normal", "SHUTDOWN", "MONITOR",
			"SCRIPT FLUSH", "DEBUG SLEEP 0", "PEXPIRE KEY 1", "XTRIM KEY MAXLEN 0", "EVAL return_1 1 KEY", "EVALSHA 0000000000000000000000000000000000000000 1 KEY",
			"EVAL_RO return_redis.call('XADD',KEYS[1],'*','a','b') 1 KEY", "EVAL_RO return_redis.call('SPUBLISH',KEYS[1],'x') 1 KEY", "EVAL_RO return_redis.call('DEL',KEYS[1]) 1 KEY",
		}},
	} {
		options, err := redis.ParseURL(c.url)
		if err != nil {
			t.Fatal(err)
		}
		options.Protocol, options.DisableIdentity = 2, true
		client := redis.NewClient(options)
		defer client.Close()
		do := func(line string) error {
			var args []any
			for _, word := range strings.Fields(line) {
				if word == "KEY" {
					word = ch.key()
				}
				args = append(args, strings.ReplaceAll(word, "return_", "return "))
			}
			_, err := client.Do(t.Context(), args...).Result()
			return err
		}
		for _, line := range c.allowed {
			if err := do(line); err != nil {
				t.Errorf("%s: %s: %v", name, line, err)
			}
		}
		for _, line := range c.refused {
			// Inside a script, 7.0 and Valkey say it in other words, and what a script without the right to write may not do is refused before.
			err := do(line)
			if err == nil || !strings.Contains(err.Error(), "NOPERM") && !strings.Contains(err.Error(), "ACL failure in script") && !strings.Contains(err.Error(), "The user executing the script can't") &&
				!strings.Contains(err.Error(), "Write commands are not allowed from read-only scripts") {
				t.Errorf("%s: %s: %v", name, line, err)
			}
		}
	}
	wantRange(t, newRedisStream(t, broadcaster, RedisConfig{}), ch, 0, 3) // and nothing has happened to it
}

// A worker that lacks a right is told which.
func TestRedisSaysWhichRightIsMissing(t *testing.T) {
	t.Parallel()
	server, client, all := private(t, RedisConfig{})
	text, err := os.ReadFile(usersFile)
	if err != nil {
		t.Fatal(err)
	}
	var rules []any
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "user commitcast-worker "); ok {
			for _, rule := range strings.Fields(rest) {
				rules = append(rules, rule)
			}
		}
	}
	ch := channel(newEpoch(), "t")
	for without, want := range map[string]string{
		"-evalsha": "evalsha", "-eval": "eval", "-exists": "EXISTS", "-xinfo": "XINFO", "-xadd": "XADD", "-pexpire": "PEXPIRE", "-unlink": "UNLINK",
		"-spublish": "SPUBLISH", "resetkeys": ch.key(), "resetchannels": "SPUBLISH", "-info": "info",
	} {
		offer(t, all, Offer{Run: run(ch, 1, 1), Restart: true}, Appended, 2)
		if err := client.ScriptFlush(t.Context()).Err(); err != nil { // so that EVAL is needed
			t.Fatal(err)
		}
		if without != "-eval" {
			client.ScriptLoad(t.Context(), publishSource)
		}
		s, err := NewRedis(t.Context(), userURL(t, server, client, append(append(rules[:len(rules):len(rules)], ">pass"), without)...), RedisConfig{Logger: quiet})
		if err == nil {
			var answers []Answer
			answers, err = s.Publish(t.Context(), []Offer{{Run: run(ch, 2, 2), Restart: without == "-unlink"}})
			if err == nil {
				err = answers[0].Err
			}
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; does not name %q", without, err, want)
		}
	}
}
