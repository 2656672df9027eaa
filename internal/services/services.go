package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// Config says what [Start] provides. The zero Config is Postgres and Redis.
type Config struct {
	// Stdout receives a line for each thing that takes long or changes the machine. nil = os.Stderr, since
	// installing a package must never happen silently; io.Discard silences it.
	Stdout io.Writer
	// WithoutPostgres and WithoutRedis leave one out. Default: both are provided.
	WithoutPostgres, WithoutRedis bool
	// RedisOptional lets Start succeed without Redis: RedisURL is then empty and RedisReason says why. Default: a
	// missing Redis is an error.
	RedisOptional bool
}

// Services are the servers that Start provides.
type Services struct {
	// DatabaseURL and RedisURL are where the servers are; "" if left out. They contain passwords.
	DatabaseURL, RedisURL string
	// RedisReason says in one line why RedisURL is empty although Redis was asked for; "" otherwise.
	RedisReason string

	postgres *Postgres
	redis    *Redis
}

// Start provides Postgres and Redis. ctx bounds the start only: what was started runs until Close. An error means
// that nothing is left running; a [MissingError] says what to install.
func Start(ctx context.Context, cfg Config) (*Services, error) {
	s := &Services{}
	if err := s.start(ctx, cfg); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Services) start(ctx context.Context, cfg Config) error {
	out := cfg.Stdout
	if out == nil {
		out = os.Stderr
	}

	// Given servers first: a wrong URL must not cost an installation.
	var needs []need
	if url := os.Getenv("DATABASE_URL"); url != "" && !cfg.WithoutPostgres {
		if err := checkDatabase(ctx, url); err != nil {
			return err
		}
		s.DatabaseURL = url
	} else if !cfg.WithoutPostgres {
		needs = append(needs, postgresNeed)
	}
	if url := os.Getenv("REDIS_URL"); url != "" && !cfg.WithoutRedis {
		if err := checkRedis(ctx, url); err != nil {
			return err
		}
		s.RedisURL = url
	} else if !cfg.WithoutRedis {
		needs = append(needs, redisNeed)
	}

	err := ensure(ctx, out, needs...)
	var missing *MissingError
	if cfg.RedisOptional && errors.As(err, &missing) && missing.only(redisNeed) {
		s.RedisReason = err.Error()
		cfg.WithoutRedis = true
		err = nil
	}
	if err != nil {
		return err
	}

	if !cfg.WithoutPostgres && s.DatabaseURL == "" {
		if s.postgres, err = StartPostgres(ctx, PostgresConfig{}); err != nil {
			return err
		}
		s.DatabaseURL = s.postgres.URL("postgres")
		fmt.Fprintf(out, "commitcast: private Postgres %s on %s\n", s.postgres.Version(), s.postgres.Addr())
	}
	if !cfg.WithoutRedis && s.RedisURL == "" {
		s.redis, err = StartRedis(ctx, RedisConfig{})
		switch {
		case err == nil:
			s.RedisURL = s.redis.URL()
			fmt.Fprintf(out, "commitcast: private Redis %s on %s\n", s.redis.Version(), s.redis.Addr())
		case cfg.RedisOptional && ctx.Err() == nil:
			s.RedisReason = err.Error()
		default:
			return err
		}
	}
	return nil
}

// Postgres is the private server, or nil if the database was given by DATABASE_URL or left out.
func (s *Services) Postgres() *Postgres { return s.postgres }

// Redis is the private server, or nil if it was given by REDIS_URL, left out or not to be had.
func (s *Services) Redis() *Redis { return s.redis }

// Close ends what Start started, at once and without a checkpoint, and removes its data. Servers given by
// DATABASE_URL and REDIS_URL are not touched. Calling it twice is fine.
func (s *Services) Close() {
	if s.redis != nil {
		s.redis.Close()
	}
	if s.postgres != nil {
		s.postgres.Close()
	}
}
