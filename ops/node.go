package ops

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/worker"
)

// Paths of the ops listener.
const (
	PathNode       = "/v1/node"
	PathClients    = "/v1/clients"
	PathTopics     = "/v1/topics"
	PathDrain      = "/v1/drain"
	PathUndrain    = "/v1/undrain"
	PathDisconnect = "/v1/disconnect"
	PathFollowers  = "/v1/followers"
	PathAdvance    = "/v1/advance"
)

const (
	// maxAnswer bounds what a node may answer, in bytes.
	maxAnswer = 8 << 20
	// maxNodes bounds the nodes that are asked.
	maxNodes = 1000
	// drainWithin is how long a node may take to close its clients.
	drainWithin = 2 * time.Minute
)

// Identity is what a process says of itself at PathNode.
type Identity struct {
	Host        string             `json:"host"`
	PID         int                `json:"pid"`
	Version     string             `json:"version"`
	Started     time.Time          `json:"started"`
	Now         time.Time          `json:"now"`
	ClientURL   string             `json:"client_url,omitempty"` // of its WebSocket, as it listens; a proxy may stand before it
	Auth        bool               `json:"auth"`                 // clients need a token
	InProcess   bool               `json:"in_process"`           // its stream is within: no Redis
	Worker      *worker.State      `json:"worker,omitempty"`
	Broadcaster *broadcaster.State `json:"broadcaster,omitempty"`
	Canary      *CanaryState       `json:"canary,omitempty"` // nil: it has none
	// Certificates are when those end that are served, by listener: clients, operators.
	Certificates map[string]time.Time `json:"certificates,omitempty"`
}

// CanaryState is how fresh what is committed is at a socket of a node.
type CanaryState struct {
	Age float64 `json:"age_s"` // of the newest event of the canary that has arrived, in seconds
	Why string  `json:"why"`   // where it may hang, while it does
}

// Node is a process, as found.
type Node struct {
	Address   string             `json:"address"`         // of its ops listener; with https:// if that serves TLS
	Connected bool               `json:"connected"`       // it has a session with the database now
	Error     string             `json:"error,omitempty"` // why it did not answer
	Took      time.Duration      `json:"took_ns"`
	Identity  *Identity          `json:"identity,omitempty"`
	Counters  map[string]float64 `json:"counters,omitempty"`
}

// Name is how people call the node.
func (n *Node) Name() string {
	switch {
	case n.Identity != nil && n.Identity.Broadcaster != nil:
		return n.Identity.Broadcaster.Node
	case n.Identity != nil && n.Identity.Worker != nil:
		return n.Identity.Worker.Node
	}
	return n.Address
}

// Kind is what it does.
func (n *Node) Kind() string {
	switch id := n.Identity; {
	case id == nil:
		return "?"
	case id.Worker != nil && id.Broadcaster != nil:
		return "all"
	case id.Worker != nil:
		return "worker"
	default:
		return "broadcaster"
	}
}

// Addresses are those of the ops listeners of processes that are connected to the database now. Each of their sessions says it
// in its application_name, behind an @, so nobody is listed who is gone. Any login can say anything there: only those are believed
// that may work or read, or own the schema.
func (c *Console) addresses(ctx context.Context) ([]string, error) {
	rows, err := c.pool.Query(ctx, `SELECT DISTINCT substr(application_name, strpos(application_name, '@') + 1) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name LIKE 'commitcast%@_%' AND EXISTS (
			SELECT FROM (SELECT oid FROM pg_roles WHERE rolname IN ('commitcast_worker', 'commitcast_reader')
				UNION ALL SELECT nspowner FROM pg_namespace WHERE nspname = 'commitcast') AS believed (role)
			WHERE pg_has_role(usesysid, role, 'member'))
		ORDER BY 1 LIMIT $1`, maxNodes)
	if err != nil {
		return nil, wrap("looking for nodes", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, wrap("looking for nodes", err)
	}
	c.known.mu.Lock()
	defer c.known.mu.Unlock()
	c.known.addresses = list
	return list, nil
}

// bare is an address without its scheme: the same listener, however it is named.
func bare(address string) string { return strings.TrimPrefix(address, "https://") }

// Nodes finds the processes and asks each. The error says that the database could not be asked; those that were named to the
// Console, or were known when it last answered, are asked all the same.
func (c *Console) Nodes(ctx context.Context) ([]*Node, error) {
	qctx, cancel := context.WithTimeout(ctx, lookTimeout)
	found, err := c.addresses(qctx)
	cancel()
	if err != nil {
		c.known.mu.Lock()
		found = c.known.addresses
		c.known.mu.Unlock()
	}
	var nodes []*Node
	for _, a := range found {
		if slices.Contains(c.cfg.Nodes, "https://"+a) {
			a = "https://" + a // what the operator said holds
		}
		nodes = append(nodes, &Node{Address: a, Connected: err == nil})
	}
	for _, a := range c.cfg.Nodes {
		if !slices.ContainsFunc(found, func(f string) bool { return bare(f) == bare(a) }) {
			nodes = append(nodes, &Node{Address: a})
		}
	}
	c.each(nodes, func(n *Node) {
		start := time.Now()
		var id Identity
		if err := c.get(ctx, n.Address, PathNode, &id); err != nil {
			n.Error = err.Error()
			return
		}
		n.Took, n.Identity = time.Since(start), &id
		n.Counters, _ = c.counters(ctx, n.Address)
	})
	slices.SortFunc(nodes, func(a, b *Node) int {
		return cmp.Or(cmp.Compare(a.Kind(), b.Kind()), cmp.Compare(a.Name(), b.Name()), cmp.Compare(a.Address, b.Address))
	})
	return nodes, err
}

// asks bounds how many nodes are asked at once.
const asks = 32

func (c *Console) each(nodes []*Node, do func(*Node)) {
	var wg sync.WaitGroup
	turns := make(chan struct{}, asks)
	for _, n := range nodes {
		turns <- struct{}{}
		wg.Go(func() { // waited for below
			defer func() { <-turns }()
			do(n)
		})
	}
	wg.Wait()
}

// Broadcaster finds one by name or address of its ops listener.
func (c *Console) Broadcaster(ctx context.Context, name string) (*Node, error) {
	nodes, err := c.Nodes(ctx)
	var found []*Node
	var names []string
	for _, n := range nodes {
		if n.Identity != nil && n.Identity.Broadcaster != nil {
			names = append(names, n.Name())
			if n.Name() == name || bare(n.Address) == bare(name) {
				found = append(found, n)
			}
		} else if bare(n.Address) == bare(name) && n.Error != "" {
			return nil, fmt.Errorf("node %s does not answer: %s", name, n.Error)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("%w: %d broadcasters are called %q: say which by the address of its ops listener", ErrConflict, len(found), name)
	case err != nil:
		return nil, err
	case len(names) == 0:
		return nil, fmt.Errorf("%w: no broadcaster answers", ErrNotFound)
	}
	return nil, fmt.Errorf("%w: there is no broadcaster %q; there are: %s", ErrNotFound, name, strings.Join(names, ", "))
}

// NodeClients is a page of the clients of one broadcaster.
type NodeClients struct {
	Node    string                    `json:"node"`
	Address string                    `json:"address"`
	Total   int                       `json:"total"` // of the node
	Error   string                    `json:"error,omitempty"`
	Clients []broadcaster.ClientState `json:"clients"`
}

// Clients lists the clients of every broadcaster, or of one, after a session, at most limit of each.
func (c *Console) Clients(ctx context.Context, node, subject, after string, limit int) ([]NodeClients, error) {
	return c.clients(ctx, node, url.Values{"subject": {subject}, "after": {after}, "limit": {strconv.Itoa(page(limit))}})
}

func (c *Console) clients(ctx context.Context, node string, q url.Values) ([]NodeClients, error) {
	var nodes []*Node
	if node != "" {
		n, err := c.Broadcaster(ctx, node)
		if err != nil {
			return nil, err
		}
		nodes = []*Node{n}
	} else {
		var err error
		if nodes, err = c.Nodes(ctx); err != nil && len(nodes) == 0 {
			return nil, err
		}
		nodes = slices.DeleteFunc(nodes, func(n *Node) bool { return n.Identity != nil && n.Identity.Broadcaster == nil })
	}
	list := make([]NodeClients, len(nodes))
	byNode := make(map[*Node]*NodeClients, len(nodes))
	for i, n := range nodes {
		list[i] = NodeClients{Node: n.Name(), Address: n.Address, Error: n.Error}
		byNode[n] = &list[i]
	}
	c.each(nodes, func(n *Node) {
		to := byNode[n]
		if n.Identity == nil {
			return
		}
		to.Total = n.Identity.Broadcaster.Connections
		if err := c.get(ctx, n.Address, PathClients+"?"+q.Encode(), &to.Clients); err != nil {
			to.Error = err.Error()
		}
	})
	return list, nil
}

// ClientsBehind lists, for every broadcaster or for one, the clients that are furthest behind, at most limit of each. Those that have
// been sent everything are not among them.
func (c *Console) ClientsBehind(ctx context.Context, node string, limit int) ([]NodeClients, error) {
	return c.clients(ctx, node, url.Values{"behind": {"1"}, "limit": {strconv.Itoa(page(limit))}})
}

// Acted is what a node did.
type Acted struct {
	Node    string `json:"node"`
	Address string `json:"address"`
	Clients int    `json:"clients"` // that were told to come back, and closed
	Error   string `json:"error,omitempty"`
}

// Drain has a broadcaster send its clients elsewhere and take no more; undo ends that.
func (c *Console) Drain(ctx context.Context, node string, undo bool) (Acted, error) {
	n, err := c.Broadcaster(ctx, node)
	if err != nil {
		return Acted{}, err
	}
	a := Acted{Node: n.Name(), Address: n.Address}
	path, action := PathDrain, "drain"
	switch {
	case undo && !n.Identity.Broadcaster.Drained:
		return a, fmt.Errorf("%w: %s is not drained", ErrConflict, a.Node)
	case !undo && n.Identity.Broadcaster.Drained:
		return a, fmt.Errorf("%w: %s is drained already", ErrConflict, a.Node)
	case undo:
		path, action = PathUndrain, "undrain"
	}
	err = c.actElsewhere(ctx, action, a.Node, a, func() (string, error) {
		if err := c.post(ctx, n.Address, path, nil, &a); err != nil {
			return "", err
		}
		return fmt.Sprintf("done: %d clients sent away", a.Clients), nil
	})
	return a, err
}

// Disconnect closes the connections of a subject, on every broadcaster.
func (c *Console) Disconnect(ctx context.Context, subject string) ([]Acted, error) {
	if subject == "" {
		return nil, fmt.Errorf("%w: the subject is empty", ErrInvalid)
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return nil, err // it could not be recorded
	}
	var acted []Acted
	err = c.actElsewhere(ctx, "disconnect", subject, nil, func() (string, error) {
		var closed, failed int
		var mu sync.Mutex
		c.each(nodes, func(n *Node) {
			if n.Identity != nil && n.Identity.Broadcaster == nil {
				return
			}
			a := Acted{Node: n.Name(), Address: n.Address, Error: n.Error}
			if n.Error == "" {
				if err := c.post(ctx, n.Address, PathDisconnect, map[string]string{"subject": subject}, &a); err != nil {
					a.Error = err.Error()
				}
			}
			mu.Lock()
			defer mu.Unlock()
			acted = append(acted, a)
			closed += a.Clients
			if a.Error != "" {
				failed++
			}
		})
		slices.SortFunc(acted, func(a, b Acted) int { return cmp.Compare(a.Node, b.Node) })
		result := fmt.Sprintf("%d connections closed on %d nodes", closed, len(acted)-failed)
		if failed > 0 {
			return "", fmt.Errorf("%s; %d nodes did not answer", result, failed)
		}
		return "done: " + result, nil
	})
	return acted, err
}

// get asks a node.
func (c *Console) get(ctx context.Context, address, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	return c.ask(ctx, http.MethodGet, address, path, nil, into)
}

// post orders something of a node.
func (c *Console) post(ctx context.Context, address, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, drainWithin)
	defer cancel()
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.ask(ctx, http.MethodPost, address, path, text, into)
}

func (c *Console) ask(ctx context.Context, method, address, path string, body []byte, into any) error {
	text, err := c.fetch(ctx, method, address, path, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s does not answer as a Commitcast of this version would: %w", address, err)
	}
	return nil
}

func (c *Console) fetch(ctx context.Context, method, address, path string, body []byte) ([]byte, error) {
	at := address
	if !strings.HasPrefix(at, "https://") {
		at = "http://" + at
	}
	req, err := http.NewRequestWithContext(ctx, method, at+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %q is not the address of an ops listener", ErrInvalid, address)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	trusted := c.trusts(address)
	if c.cfg.Token != "" && trusted {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	resp, err := c.cfg.HTTP.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		var unverified *tls.CertificateVerificationError
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			err = errors.New("no answer in time")
		case errors.As(err, &unverified):
			err = fmt.Errorf("%w; the authority of ops listeners is said with --node-ca", err)
		}
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusUnauthorized && c.cfg.Token != "" && !trusted:
		return nil, fmt.Errorf("%w: it wants a token; name it with --node", ErrForbidden)
	case resp.StatusCode == http.StatusUnauthorized:
		return nil, fmt.Errorf("%w: it wants the token of --ops-token-file, or a certificate (--node-cert)", ErrForbidden)
	case resp.StatusCode == http.StatusBadRequest && resp.TLS == nil && bytes.Contains(text, []byte("HTTPS server")):
		return nil, errors.New("it serves TLS: name it with --node=https://" + address)
	case resp.StatusCode == http.StatusConflict:
		return nil, fmt.Errorf("%w: %s", ErrConflict, strings.TrimSpace(string(text)))
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("it answers %s: %s", resp.Status, clip(strings.TrimSpace(string(text))))
	}
	return text, nil
}

// trusts reports whether an address may get the token: the operator has named it, or it is on this machine. Where only a session
// claims it, whoever may log in as a worker or reader would get the token. What was named without TLS may be spoken to with it, and
// not the other way round.
func (c *Console) trusts(address string) bool {
	at, err := netip.ParseAddrPort(bare(address)) // strict: "127.0.0.1:1@elsewhere" is none
	return err == nil && at.Addr().IsLoopback() || slices.Contains(c.cfg.Nodes, address) || slices.Contains(c.cfg.Nodes, bare(address))
}

// apart are counters of which each value of a label is told, too: replays by source, since who reads from the journal, when Redis
// has it, costs the database; and answers of the stream, since a gap is something that Redis has lost.
var apart = map[string]string{replayed: "source", answered: "outcome"}

const (
	// appending is a gauge, of which the greatest counts: each worker says what it has seen.
	appending = "commitcast_pipeline_open_append_seconds"
	replayed  = "commitcast_broadcaster_events_replayed_total"
	answered  = "commitcast_stream_answers_total"
)

// counted are the counters that a look reads, summed over their labels.
var counted = []string{
	"commitcast_broadcaster_events_delivered_total", "commitcast_broadcaster_gaps_total", "commitcast_broadcaster_resets_total",
	"commitcast_broadcaster_clients_stalled_total", "commitcast_broadcaster_connections_refused_total", replayed, answered, appending,
	"commitcast_worker_sequenced_events_total", "commitcast_worker_published_events_total", "commitcast_worker_refused_attempts_total",
}

// counters reads a node's metrics.
func (c *Console) counters(ctx context.Context, address string) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	text, err := c.fetch(ctx, http.MethodGet, address, "/metrics", nil)
	if err != nil {
		return nil, err
	}
	sums := make(map[string]float64)
	for line := range strings.Lines(string(text)) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), " ")
		if base, labels, some := strings.Cut(name, "{"); some {
			name = base
			rest = line[strings.LastIndexByte(line, ' ')+1:]
			if _, value, ok := strings.Cut(labels, apart[name]+`="`); ok && apart[name] != "" {
				value, _, _ = strings.Cut(value, `"`)
				if v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64); err == nil {
					sums[name+"/"+value] += v
				}
			}
		}
		if !ok || !slices.Contains(counted, name) {
			continue
		}
		if v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64); err == nil {
			sums[name] += v
		}
	}
	return sums, nil
}
