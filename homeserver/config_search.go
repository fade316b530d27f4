package homeserver

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Search says how messages are found.
type Search struct {
	Engine        string        `yaml:"engine"` // bleve, elasticsearch, none; empty: elasticsearch where an address of it is given
	Path          string        `yaml:"path"`   // empty: search inside data_dir
	Elasticsearch Elasticsearch `yaml:"elasticsearch"`
	Attachments   Attachments   `yaml:"attachments"`

	// Program is started to keep the index of Bleve; its main calls bleve.Child. Empty: it is kept in this process.
	Program string `yaml:"-"`
}

// Elasticsearch is a cluster of Elasticsearch 8 or OpenSearch.
type Elasticsearch struct {
	URL          string   `yaml:"url"`
	URLs         []string `yaml:"urls"` // several nodes
	APIKey       Secret   `yaml:"api_key"`
	APIKeyFile   string   `yaml:"api_key_file"`
	Username     string   `yaml:"username"`
	Password     Secret   `yaml:"password"`
	PasswordFile string   `yaml:"password_file"`
	CAFile       string   `yaml:"ca_file"`
	Prefix       string   `yaml:"prefix"`
	Shards       int      `yaml:"shards"`
	Replicas     int      `yaml:"replicas"`
}

// Attachments is about the texts of uploaded files.
type Attachments struct {
	Enabled bool     `yaml:"enabled"`
	MaxSize Size     `yaml:"max_size"`
	Timeout Duration `yaml:"timeout"`
	Memory  Size     `yaml:"memory"`
	Workers int      `yaml:"workers"`

	// Program is started to read files; its main calls extract.Child. Empty: files are read in this process.
	Program string `yaml:"-"`
}

// The search engines.
const (
	EngineBleve   = "bleve"
	EngineElastic = "elasticsearch"
	EngineNone    = "none"
)

func defaultSearch() Search {
	return Search{
		Elasticsearch: Elasticsearch{Prefix: "moothall", Shards: 1},
		Attachments:   Attachments{Enabled: true, MaxSize: 50 << 20, Timeout: Duration(minute / 2), Memory: 512 << 20, Workers: 1},
	}
}

// nodes are the addresses of the cluster.
func (e *Elasticsearch) nodes() []string {
	if e.URL != "" {
		return append([]string{e.URL}, e.URLs...)
	}
	return e.URLs
}

// engine is the engine that is meant.
func (s *Search) engine() string {
	switch {
	case s.Engine != "":
		return s.Engine
	case len(s.Elasticsearch.nodes()) > 0:
		return EngineElastic
	}
	return EngineBleve
}

// SearchDir is the folder of Bleve's index.
func (c *Config) SearchDir() string {
	if c.Search.Path != "" {
		return c.Search.Path
	}
	return filepath.Join(c.DataDir, "search")
}

var indexPrefix = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,99}$`)

func (c *Config) checkSearch(d *configReader) error {
	s := &c.Search
	switch s.engine() {
	case EngineBleve, EngineElastic, EngineNone:
	default:
		return d.complain("search.engine", "is %q; it must be bleve, elasticsearch or none", s.Engine)
	}
	e := &s.Elasticsearch
	if s.engine() == EngineElastic && len(e.nodes()) == 0 {
		return d.complain("search.elasticsearch.url", "is missing; it must be an address such as https://search.example.org:9200")
	}
	for _, u := range e.nodes() {
		if parsed, err := url.Parse(u); err != nil || !isHTTP(u) || parsed.User != nil || parsed.RawQuery != "" {
			key := "search.elasticsearch.urls"
			if u == e.URL {
				key = "search.elasticsearch.url"
			}
			return d.complain(key, "must be an address such as https://search.example.org:9200, without name and password")
		}
	}
	if (e.Username == "") != (e.Password == "") {
		return d.complain("search.elasticsearch.username", "and search.elasticsearch.password belong together; one of them is missing")
	}
	if e.APIKey != "" && e.Username != "" {
		return d.complain("search.elasticsearch.api_key", "cannot be used together with search.elasticsearch.username")
	}
	if strings.ContainsAny(string(e.APIKey), " \r\n") {
		return d.complain("search.elasticsearch.api_key", "holds a blank; it must be the \"encoded\" form of the key")
	}
	if e.CAFile != "" {
		if _, err := os.ReadFile(e.CAFile); err != nil {
			return d.complain("search.elasticsearch.ca_file", "cannot be read: %v", err)
		}
	}
	if !indexPrefix.MatchString(e.Prefix) {
		return d.complain("search.elasticsearch.prefix", "is %q; it must be small letters, digits, - and _", e.Prefix)
	}
	if e.Shards < 1 || e.Shards > 64 {
		return d.complain("search.elasticsearch.shards", "is %d; it must be from 1 to 64", e.Shards)
	}
	if e.Replicas < 0 || e.Replicas > 8 {
		return d.complain("search.elasticsearch.replicas", "is %d; it must be from 0 to 8", e.Replicas)
	}
	a := &s.Attachments
	if a.MaxSize < 1 || a.MaxSize > 1<<30 {
		return d.complain("search.attachments.max_size", "must be from 1 to \"1GiB\"")
	}
	if a.Timeout.Std() < 1e9 || a.Timeout.Std() > 10*minute {
		return d.complain("search.attachments.timeout", "must be from \"1s\" to \"10m\"")
	}
	if a.Memory < 64<<20 || a.Memory > 16<<30 {
		return d.complain("search.attachments.memory", "must be from \"64MiB\" to \"16GiB\"")
	}
	if a.Workers < 1 || a.Workers > 32 {
		return d.complain("search.attachments.workers", "is %d; it must be from 1 to 32", a.Workers)
	}
	return nil
}
