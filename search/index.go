package search

import (
	"cmp"
	"context"
	"errors"
	"strconv"

	"maunium.net/go/mautrix/id"
)

// The views of the index. A document may be in both.
const (
	ViewUser    = "u" // one document for each message that is there, with its newest text
	ViewArchive = "v" // one document for each version of each message, also of redacted ones
)

// Flags of documents.
const (
	FlagEdit       = "edit"       // replaces an earlier version
	FlagSuperseded = "superseded" // a later version replaced it
	FlagRedacted   = "redacted"
	FlagURL        = "url"  // the content has a member url
	FlagFile       = "file" // an uploaded file belongs to it
	FlagText       = "text" // text of the file was found
)

// Kinds of documents: what a message is, in words for facets.
const (
	KindText    = "text"
	KindNotice  = "notice"
	KindImage   = "image"
	KindFile    = "file"
	KindAudio   = "audio"
	KindVideo   = "video"
	KindOther   = "other"
	KindSticker = "sticker"
	KindPoll    = "poll"
	KindName    = "name"  // m.room.name
	KindTopic   = "topic" // m.room.topic
)

// Doc is one document of the index. Engines keep its tokens, not its texts.
type Doc struct {
	ID      string // the event id; with "/v" behind it the first version of a message that was edited
	NID     int64  // the event's number: hits are read by it
	TS      int64  // origin_server_ts, ms since 1970; negative times and those beyond the year 9999 are cut
	Version int64  // position of the log at which the document was made: an older one never replaces a newer one
	Room    int64  // rooms.nid
	Sender  id.UserID
	Kind    string
	Type    string // event type
	Views   []string
	Flags   []string
	Texts   []string
}

// maxTokens bounds the tokens of one document: the text of a thick book.
const maxTokens = 300_000

// Tokens are the terms by which the document is found. To make them is work, which engines do where it disturbs nobody.
func (d *Doc) Tokens() Tokens { return Tokenize(FoldAll(d.Texts...), maxTokens) }

// Batch is written as one. Documents replace those of the same id.
type Batch struct {
	Docs    []Doc
	Delete  []string // ids
	Version int64    // of the deletions, as in Doc; 0: whatever is there goes
}

// State is how far a generation is. It is kept in the engine, beside the documents that it speaks of.
type State struct {
	Format int   `json:"format"` // of the documents; another one than Format means that they must be made anew
	Epoch  int64 `json:"epoch"`  // the log's epoch
	Pos    int64 `json:"pos"`    // the log is followed up to here
	Scan   int64 `json:"scan"`   // events up to this number are read
	ScanTo int64 `json:"scan_to"`
}

// Format is the number of the analysis and of the layout of documents. It grows with every change to either, and then
// every server builds its index anew.
const Format = 1

// Done tells whether all that was there at the beginning is read.
func (s *State) Done() bool { return s.Scan >= s.ScanTo }

// Generation is one copy of the index. Searches go to the one that is served; others are being built to take its place.
type Generation struct {
	Name   string
	Served bool
	State  State
	Kept   int64 // the part of State.Pos that outlives a crash: from here on the log is needed
}

// Cursor is a place in the order of hits: newest first by time and then by number, or oldest first.
type Cursor struct{ TS, NID int64 }

// Query asks an index. Empty lists do not restrict; nil and empty differ for Rooms only, where empty finds nothing.
type Query struct {
	View       string
	Text       Expr
	Rooms      []int64 // nil: all rooms
	NotRooms   []int64
	Senders    []string
	NotSenders []string
	Kinds      []string
	Types      []string
	Flags      []string // all of them
	NotFlags   []string // none of them
	From, To   int64    // ms since 1970: From <= TS < To; 0: no bound
	After      *Cursor  // behind this place
	Oldest     bool     // oldest first
	Limit      int      // 0: only totals and facets
	Facets     []Facet
	Exact      bool // count all hits, whatever it takes
}

// Facet asks for the most frequent values of a field among all hits.
type Facet struct {
	Field string // FacetSender, FacetRoom, FacetKind, FacetDay
	Size  int
}

// The fields that can be counted. FacetDay gives days since 1970 (UTC) in the order of time, FacetRoom numbers of rooms.
const (
	FacetSender = "sender"
	FacetRoom   = "room"
	FacetKind   = "kind"
	FacetDay    = "day"
)

// Bucket is a value of a facet with its number of hits.
type Bucket struct {
	Value string
	Count int64
}

// Hit is a document that was found.
type Hit struct {
	ID string
	Cursor
}

// Page is what a query found. Total counts all hits of the query, wherever After stands; engines may stop counting at
// 10,000, and then AtLeast is true.
type Page struct {
	Hits    []Hit
	Total   int64
	AtLeast bool
	Facets  map[string][]Bucket
}

// Index is an engine. Its methods are safe for concurrent use; errors that wrap ErrGone say that a generation vanished, any
// other that the engine cannot be reached now.
type Index interface {
	// Name is the engine's name for people and logs.
	Name() string
	// Search asks the served generation.
	Search(ctx context.Context, q *Query) (*Page, error)
	// Generations lists what is there.
	Generations(ctx context.Context) ([]Generation, error)
	// Create makes an empty generation; it is served at once if asked for.
	Create(ctx context.Context, name string, served bool, state State) error
	// Write puts documents into a generation, and its state. Searches see them within a moment.
	Write(ctx context.Context, generation string, b *Batch, state State) error
	// DeleteRoom removes the documents of a room.
	DeleteRoom(ctx context.Context, generation string, room int64) error
	// Serve makes a generation the one that is searched.
	Serve(ctx context.Context, generation string) error
	// Drop removes a generation.
	Drop(ctx context.Context, generation string) error
	// Size is the number of documents of the served generation and their bytes on disk.
	Size(ctx context.Context) (docs, bytes int64, err error)
	// Open prepares the engine for this process; Close lets go of it.
	Open(ctx context.Context) error
	Close() error
}

// ErrGone is in the chain of an error when a generation does not exist (any more).
var ErrGone = errors.New("this copy of the search index does not exist")

// ErrNotServed is in the chain of Search's error while there is no generation to search.
var ErrNotServed = errors.New("there is no search index yet")

const dayMS = 24 * 60 * 60 * 1000

// maxTS is the end of the year 9999.
const maxTS = 253402300799999

// ClampTS brings a time that somebody claimed into the years that an index knows.
func ClampTS(ts int64) int64 { return min(max(ts, 0), maxTS) }

// Day is the day of a time, counted from 1970 in UTC.
func Day(ts int64) int64 { return ts / dayMS }

// CompareBuckets is the order in which all engines give buckets: days by time, all else by number and then by value.
func CompareBuckets(field string) func(a, b Bucket) int {
	return func(a, b Bucket) int {
		if field == FacetDay {
			x, _ := strconv.ParseInt(a.Value, 10, 64)
			y, _ := strconv.ParseInt(b.Value, 10, 64)
			return cmp.Compare(x, y)
		}
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Value, b.Value))
	}
}
