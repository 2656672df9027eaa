package e2e

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"go.yaml.in/yaml/v4"

	"github.com/commitcast/commitcast/wire"
)

// docs/asyncapi.yaml says what package wire does: the same ops, fields, close codes and error codes; every golden vector that
// is a frame fits its schema, and none of those that are refused does.
func TestAsyncAPI(t *testing.T) {
	type ref struct {
		Ref string `yaml:"$ref"`
	}
	var doc struct {
		AsyncAPI string
		Channels map[string]struct {
			Messages map[string]ref
			Codes    []wire.CloseCode `yaml:"x-close-codes"`
		}
		Operations map[string]struct {
			Action   string
			Channel  ref
			Messages []ref
			Reply    struct{ Messages []ref }
		}
		Components struct {
			Messages map[string]struct{ Payload ref }
			Schemas  map[string]any
		}
	}
	text, err := os.ReadFile("../../docs/asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.AsyncAPI != "3.0.0" {
		t.Errorf("asyncapi: %s", doc.AsyncAPI)
	}

	// The schemas are JSON Schema, which OpenAPI has, too.
	envelope, err := json.Marshal(map[string]any{
		"openapi": "3.1.0", "info": map[string]any{"title": "x", "version": "1"}, "paths": map[string]any{},
		"components": map[string]any{"schemas": doc.Components.Schemas},
	})
	if err != nil {
		t.Fatal(err)
	}
	schemas, err := openapi3.NewLoader().LoadFromData(envelope)
	if err != nil {
		t.Fatal(err)
	}
	schema := func(name string) *openapi3.Schema {
		s := schemas.Components.Schemas[name]
		if s == nil {
			t.Fatalf("no schema %q", name)
		}
		return s.Value
	}
	fits := func(name string, value any) error {
		return schema(name).VisitJSON(value, openapi3.EnableJSONSchema2020())
	}
	schemaOf := func(op string) string {
		return strings.TrimPrefix(doc.Components.Messages[op].Payload.Ref, "#/components/schemas/")
	}

	// Ops: those that wire reads and writes, those of the channels, and those that some operation sends or receives.
	server, client, codes := said(t)
	both := slices.Sorted(slices.Values(slices.Concat(server, client)))
	same(t, "messages", slices.Sorted(maps.Keys(doc.Components.Messages)), both)
	same(t, "messages of the socket", slices.Sorted(maps.Keys(doc.Channels["socket"].Messages)), both)
	for name, channel := range doc.Channels {
		for op, message := range channel.Messages {
			if message.Ref != "#/components/messages/"+op {
				t.Errorf("channel %s: %s is %s", name, op, message.Ref)
			}
		}
	}
	used := map[string][]string{}
	for name, operation := range doc.Operations {
		channel := strings.TrimPrefix(operation.Channel.Ref, "#/channels/")
		for i, message := range slices.Concat(operation.Messages, operation.Reply.Messages) {
			op, ok := strings.CutPrefix(message.Ref, "#/channels/"+channel+"/messages/")
			if _, there := doc.Channels[channel].Messages[op]; !ok || !there {
				t.Errorf("operation %s: no %s", name, message.Ref)
			}
			direction := channel + " " + operation.Action
			if i >= len(operation.Messages) {
				direction = channel + " send"
			}
			used[direction] = append(used[direction], op)
		}
	}
	for _, ops := range used {
		slices.Sort(ops)
	}
	same(t, "what the server sends", slices.Compact(used["socket send"]), server)
	same(t, "what it receives", slices.Compact(used["socket receive"]), client)
	overSSE := slices.DeleteFunc(slices.Clone(server), func(op string) bool { return op == "unsubscribed" })
	same(t, "what it sends as events", slices.Compact(used["events send"]), overSSE)
	for op := range doc.Components.Messages {
		if c := schema(schemaOf(op)).Properties["op"].Value.Const; c != op {
			t.Errorf("the schema of %s is for %v", op, c)
		}
	}

	// Codes.
	if got := doc.Channels["socket"].Codes; !reflect.DeepEqual(got, wire.CloseCodes) {
		t.Errorf("close codes\n%+v, want\n%+v", got, wire.CloseCodes)
	}
	listed := func(name, field string) (list []string) {
		for _, value := range schema(name).Properties[field].Value.AnyOf[0].Value.Enum {
			list = append(list, value.(string))
		}
		slices.Sort(list)
		return list
	}
	same(t, "codes of error", listed("Error", "code"), codes["Code"])
	same(t, "reasons of reset", listed("Reset", "reason"), codes["Reason"])

	// Limits and names.
	for name, bound := range map[string]*uint64{"type": schema("Label").MaxLength, "key": schema("Label").MaxLength} {
		if bound == nil || *bound != wire.MaxLabelLen {
			t.Errorf("%s is not bounded by %d", name, wire.MaxLabelLen)
		}
	}
	if m := schema("Integer").Max; m == nil || *m != wire.MaxInteger {
		t.Errorf("integers are not bounded by %d", wire.MaxInteger)
	}
	if schema("Topic").Pattern != wire.TopicPattern {
		t.Errorf("topics are %s, want %s", schema("Topic").Pattern, wire.TopicPattern)
	}
	names := golden[struct {
		Cursors    []struct{ Text, Epoch string }
		BadCursors []string `json:"bad_cursors"`
		Topics     []string
		BadTopics  []string `json:"bad_topics"`
	}](t, "names")
	for _, c := range names.Cursors {
		if err := fits("Cursor", c.Text); err != nil {
			t.Errorf("%s: %v", c.Text, err)
		}
		if err := fits("Epoch", c.Epoch); err != nil {
			t.Errorf("%s: %v", c.Epoch, err)
		}
	}
	for _, text := range names.BadCursors {
		if fits("Cursor", text) == nil && !strings.HasSuffix(text, ":9007199254740992") { // beyond a pattern
			t.Errorf("cursor %q fits", text)
		}
	}
	for _, name := range names.Topics {
		if err := fits("Topic", name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range names.BadTopics {
		if fits("Topic", name) == nil {
			t.Errorf("topic %q fits", name)
		}
	}

	// Frames.
	type frame struct{ Name, Line string }
	fromServer := golden[struct {
		Frames, Data, Tolerated []frame
		Bad                     []string
	}](t, "server")
	fromClient := golden[struct {
		Frames, Tolerated []frame
		Bad               []struct{ Line string }
	}](t, "client")
	messages := golden[struct {
		Messages []struct {
			Name  string
			Lines []string
		}
	}](t, "messages")
	good := slices.Concat(fromServer.Frames, fromServer.Data, fromServer.Tolerated, fromClient.Frames, fromClient.Tolerated)
	for _, m := range messages.Messages {
		for _, line := range m.Lines {
			good = append(good, frame{m.Name, line})
		}
	}
	seen := map[string]bool{}
	for _, c := range good {
		var value map[string]any
		if err := json.Unmarshal([]byte(withoutOddNumbers(c.Line)), &value); err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		op := value["op"].(string)
		if err := fits(schemaOf(op), value); err != nil {
			t.Errorf("%s does not fit: %v\n%s", c.Name, err, c.Line)
		}
		for field := range value {
			seen[op+" "+field] = true
			if schema(schemaOf(op)).Properties[field] == nil && field != "later" {
				t.Errorf("%s: no word of %s in %s", c.Name, field, op)
			}
		}
	}
	for op := range doc.Components.Messages {
		for field := range schema(schemaOf(op)).Properties {
			if !seen[op+" "+field] {
				t.Errorf("promised and not seen: %s of %s", field, op)
			}
		}
	}
	bad := fromServer.Bad
	for _, c := range fromClient.Bad {
		bad = append(bad, c.Line)
	}
	refused := 0
	for _, line := range bad {
		var value map[string]any
		if json.Unmarshal([]byte(line), &value) != nil {
			continue
		}
		op, _ := value["op"].(string)
		if _, ok := doc.Components.Messages[op]; !ok {
			continue
		}
		if op == "event" && value["data"] == nil && value["id"] == 8.0 {
			continue // a client's, whose op is the fault
		}
		if fits(schemaOf(op), value) == nil {
			t.Errorf("fits, and is refused: %s", line)
		}
		refused++
	}
	if len(good) < 50 || refused < 100 {
		t.Errorf("%d and %d vectors only", len(good), refused)
	}
}

// withoutOddNumbers replaces a number that Go's JSON cannot hold.
func withoutOddNumbers(line string) string { return strings.ReplaceAll(line, "1e400", "1e300") }

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// golden reads a file of golden vectors.
func golden[T any](t *testing.T, name string) (v T) {
	t.Helper()
	text, err := os.ReadFile("../../wire/testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// said reads the source of package wire: the ops that its encoders write for servers, and the values of its constants by the
// first word of their names: those of clients are Op….
func said(t *testing.T) (server, client []string, constants map[string][]string) {
	t.Helper()
	constants = map[string][]string{}
	files, err := filepath.Glob("../../wire/*.go")
	if err != nil {
		t.Fatal(err)
	}
	literal := regexp.MustCompile(`^\{"op":"([a-z]+)"`)
	word := regexp.MustCompile(`^(Op|Code|Reason)[A-Z]`)
	look := func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			text, _ := strconv.Unquote(n.Value)
			if m := literal.FindStringSubmatch(text); m != nil && m[1] != "fence" { // which broadcasters keep to themselves
				server = append(server, m[1])
			}
		case *ast.ValueSpec:
			for i, name := range n.Names {
				if m := word.FindStringSubmatch(name.Name); m != nil && len(n.Values) > i {
					if value, ok := n.Values[i].(*ast.BasicLit); ok {
						text, _ := strconv.Unquote(value.Value)
						constants[m[1]] = append(constants[m[1]], text)
					}
				}
			}
		}
		return true
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(source, look)
	}
	slices.Sort(server)
	for _, list := range constants {
		slices.Sort(list)
	}
	return slices.Compact(server), constants["Op"], constants
}
