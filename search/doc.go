package search

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// version is one version of a message as the database has it.
type version struct {
	row      *store.Event
	evType   string
	sender   id.UserID
	content  gjson.Result
	replaces string // event id of the message that it edits, "" for none
	redacted bool
	redacts  string // for redactions: the event id of their target
}

// types are the event types whose texts are found.
var types = map[string]bool{
	"m.room.message": true, "m.room.name": true, "m.room.topic": true, "m.sticker": true,
	"m.poll.start": true, "org.matrix.msc3381.poll.start": true, "org.matrix.msc3381.v2.poll.start": true,
}

// Types lists the event types that are in the index.
func Types() []string {
	out := make([]string, 0, len(types))
	for t := range types {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}

func readVersion(row *store.Event, original []byte) *version {
	body := []byte(row.Body)
	v := &version{row: row, redacted: row.RedactedBy != 0}
	if v.redacted && original != nil {
		body = original
	}
	f := gjson.GetManyBytes(body, "type", "sender", "content", "redacts")
	v.evType, v.sender, v.content = f[0].Str, id.UserID(f[1].Str), f[2]
	if v.evType == "m.room.redaction" {
		if v.redacts = f[3].Str; v.redacts == "" {
			v.redacts = v.content.Get("redacts").Str
		}
	}
	if rel := v.content.Get(`m\.relates_to`); rel.Get("rel_type").Str == "m.replace" && !row.IsState {
		v.replaces = rel.Get("event_id").Str
	}
	return v
}

// indexed tells whether the version has a document.
func (v *version) indexed() bool {
	if v.row.Status != store.StatusAccepted || !types[v.evType] {
		return false
	}
	return v.evType == "m.room.message" || v.evType == "m.sticker" || strings.Contains(v.evType, "poll.start") || v.row.IsState
}

// said is the content that counts: that of an edit is its new content.
func (v *version) said() gjson.Result {
	if v.replaces != "" {
		if c := v.content.Get(`m\.new_content`); c.IsObject() {
			return c
		}
	}
	return v.content
}

// texts are what a content says: body or name or topic, and the name of a file.
func texts(evType string, c gjson.Result) []string {
	switch {
	case evType == "m.room.name":
		return []string{c.Get("name").Str}
	case evType == "m.room.topic":
		return []string{c.Get("topic").Str}
	case strings.Contains(evType, "poll.start"):
		return pollTexts(c)
	}
	body, file := c.Get("body").Str, c.Get("filename").Str
	if file == body {
		file = ""
	}
	return []string{body, file}
}

// pollTexts are the question and the answers of a poll, in the stable and in the older form.
func pollTexts(c gjson.Result) []string {
	var out []string
	text := func(o gjson.Result) {
		for _, path := range []string{`m\.text.0.body`, `org\.matrix\.msc1767\.text`, `body`} {
			if s := o.Get(path); s.Type == gjson.String {
				out = append(out, s.Str)
				return
			}
		}
	}
	for _, path := range []string{`m\.poll`, `org\.matrix\.msc3381\.poll\.start`, `org\.matrix\.msc3381\.v2\.poll`} {
		if p := c.Get(path); p.IsObject() {
			text(p.Get("question"))
			p.Get("answers").ForEach(func(_, a gjson.Result) bool {
				text(a)
				return len(out) < 50
			})
			break
		}
	}
	return out
}

func kindOf(evType string, c gjson.Result) string {
	switch evType {
	case "m.room.name":
		return KindName
	case "m.room.topic":
		return KindTopic
	case "m.sticker":
		return KindSticker
	case "m.room.message":
		switch c.Get("msgtype").Str {
		case "m.text", "m.emote":
			return KindText
		case "m.notice":
			return KindNotice
		case "m.image":
			return KindImage
		case "m.file":
			return KindFile
		case "m.audio":
			return KindAudio
		case "m.video":
			return KindVideo
		}
		return KindOther
	}
	return KindPoll
}

// fileOf is the mxc: address of a message's file where it lies unencrypted on this server, "" else.
func (b *builder) fileOf(c gjson.Result) string {
	url := c.Get("url").Str
	if strings.HasPrefix(url, "mxc://"+b.serverName+"/") && len(url) < 300 {
		return url
	}
	return ""
}

// builder makes documents of events.
type builder struct {
	serverName string
	readable   func(contentType, filename string) bool // files whose text can be found
	now        func() int64
}

// job is what building some documents needs and gives.
type job struct {
	tx       *store.Tx
	pos      int64
	rows     map[int64]*version
	families map[string]*family
	order    []string // event ids of the families
	files    map[string]string
	batch    Batch
	wanted   []store.WantedFile
}

// family is a message with all that replaces it.
type family struct {
	id      string
	touched map[int64]bool // versions whose documents are to be written
	known   bool           // edits or redactions may have left documents of another shape behind
	edits   []store.RelatedEvent
	first   *version
}

// build makes the documents of some events anew, and of all that they change: an edit changes the message it replaces, a
// redaction its target. It reads everything in one snapshot, so that its result depends on nothing but the database.
func (b *builder) build(_ context.Context, tx *store.Tx, rows []*store.Event, pos int64) (*Batch, []store.WantedFile, error) {
	j := &job{batch: Batch{Version: pos}, tx: tx, pos: pos, rows: map[int64]*version{}, families: map[string]*family{}, files: map[string]string{}}
	if err := j.read(rows); err != nil {
		return nil, nil, err
	}
	if err := j.redactions(rows); err != nil {
		return nil, nil, err
	}
	if err := j.touchAll(rows); err != nil {
		return nil, nil, err
	}
	if err := j.edits(); err != nil {
		return nil, nil, err
	}
	if err := b.readFiles(j); err != nil {
		return nil, nil, err
	}
	for _, id := range j.order {
		b.write(j, j.families[id])
	}
	return &j.batch, j.wanted, nil
}

// touchAll notes the documents of rows whose rooms are there: the events of a room that is deleted go later than the room.
func (j *job) touchAll(rows []*store.Event) error {
	var list []int64
	seen := map[int64]bool{}
	for _, row := range rows {
		if !seen[row.Room] {
			seen[row.Room] = true
			list = append(list, row.Room)
		}
	}
	there, err := j.tx.ExistingRooms(list)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if v := j.rows[row.NID]; v.indexed() && there[row.Room] {
			j.touch(v, false)
		}
	}
	return nil
}

// read parses rows, redacted ones from what they said before.
func (j *job) read(rows []*store.Event) error {
	var redacted []int64
	for _, r := range rows {
		if _, ok := j.rows[r.NID]; !ok && r.RedactedBy != 0 {
			redacted = append(redacted, r.NID)
		}
	}
	originals := map[int64][]byte{}
	if len(redacted) > 0 {
		if err := j.tx.RedactedBodies(redacted, func(nid int64, body []byte) { originals[nid] = body }); err != nil {
			return err
		}
	}
	for _, r := range rows {
		if _, ok := j.rows[r.NID]; !ok {
			j.rows[r.NID] = readVersion(r, originals[r.NID])
		}
	}
	return nil
}

// redactions reads the targets of the redactions among the rows.
func (j *job) redactions(rows []*store.Event) error {
	var targets []string
	for _, row := range rows {
		if v := j.rows[row.NID]; v.redacts != "" && row.Status == store.StatusAccepted {
			targets = append(targets, v.redacts)
		}
	}
	if len(targets) == 0 {
		return nil
	}
	found, err := j.tx.EventsByID(targets)
	if err != nil {
		return err
	}
	if err := j.read(found); err != nil {
		return err
	}
	for _, row := range found {
		v := j.rows[row.NID]
		switch {
		case v.indexed():
			j.touch(v, true)
		case v.evType == "" || row.RedactedBy != 0:
			j.batch.Delete = append(j.batch.Delete, row.EventID, row.EventID+"/v")
		}
	}
	return nil
}

// touch notes that a version's document, and its message's, are to be written.
func (j *job) touch(v *version, known bool) {
	id := v.row.EventID
	if v.replaces != "" {
		id = v.replaces
	}
	f := j.families[id]
	if f == nil {
		f = &family{id: id, touched: map[int64]bool{}}
		j.families[id] = f
		j.order = append(j.order, id)
	}
	f.touched[v.row.NID] = true
	f.known = f.known || known || v.replaces != ""
	if v.replaces == "" {
		f.first = v
	}
}

// maxEdits is how many documents of old versions one change brings up to date; more change only with their redaction.
const maxEdits = 200

// edits reads the first versions and the newest edits of all families.
func (j *job) edits() error {
	if len(j.order) == 0 {
		return nil
	}
	var missing []string
	for _, id := range j.order {
		if j.families[id].first == nil {
			missing = append(missing, id)
		}
	}
	if len(missing) > 0 {
		found, err := j.tx.EventsByID(missing)
		if err != nil {
			return err
		}
		if err := j.read(found); err != nil {
			return err
		}
		for _, row := range found {
			if v := j.rows[row.NID]; v.replaces == "" { // an edit of an edit replaces nothing
				j.families[row.EventID].first = v
			}
		}
	}
	err := j.tx.Replacements(j.order, func(e store.RelatedEvent) {
		if f := j.families[e.Parent]; f.first != nil && string(f.first.sender) == e.Sender && f.first.evType == e.Type && !f.first.row.IsState {
			f.edits = append(f.edits, e)
		}
	})
	if err != nil {
		return err
	}
	var nids []int64
	for _, f := range j.families {
		// Spec: client-server API, "Server-side aggregation of m.replace relationships": the newest by time, then by id
		slices.SortFunc(f.edits, func(a, b store.RelatedEvent) int {
			return cmp.Or(cmp.Compare(b.TS, a.TS), cmp.Compare(b.EventID, a.EventID))
		})
		f.edits = f.edits[:min(len(f.edits), maxEdits)]
		for _, e := range f.edits {
			if j.rows[e.NID] == nil {
				nids = append(nids, e.NID)
			}
		}
	}
	if len(nids) == 0 {
		return nil
	}
	found, err := j.tx.EventsByNID(nids)
	if err != nil {
		return err
	}
	return j.read(found)
}

// newest is the edit that a message shows, nil where it shows itself.
func (j *job) newest(f *family) *version {
	if f.first == nil || f.first.redacted {
		return nil
	}
	for _, e := range f.edits {
		if v := j.rows[e.NID]; v != nil && v.room() == f.first.room() && v.content.Get(`m\.new_content`).IsObject() {
			return v
		}
	}
	return nil
}

func (v *version) room() int64 { return v.row.Room }

// write adds the documents of a message.
func (b *builder) write(j *job, f *family) {
	current := j.newest(f)
	var second *version
	for _, e := range f.edits {
		if v := j.rows[e.NID]; v != nil && v != current {
			second = v
			break
		}
	}
	if first := f.first; first != nil && first.indexed() {
		switch {
		case first.redacted:
			if first.content.Get("body").Exists() || first.row.IsState {
				b.doc(j, first, first, first.row.EventID, []string{ViewArchive}, FlagRedacted)
			} else {
				j.batch.Delete = append(j.batch.Delete, first.row.EventID)
			}
			if f.known {
				j.batch.Delete = append(j.batch.Delete, first.row.EventID+"/v")
			}
		case current != nil:
			b.doc(j, first, current, first.row.EventID, []string{ViewUser})
			b.doc(j, first, first, first.row.EventID+"/v", []string{ViewArchive}, FlagSuperseded)
		default:
			b.doc(j, first, first, first.row.EventID, []string{ViewUser, ViewArchive})
			if f.known {
				j.batch.Delete = append(j.batch.Delete, first.row.EventID+"/v")
			}
		}
	}
	for nid := range f.touched {
		if v := j.rows[nid]; v != f.first && v != current && v != second {
			b.edit(j, v, false)
		}
	}
	if current != nil {
		b.edit(j, current, true)
	}
	if second != nil {
		b.edit(j, second, false)
	}
}

// edit adds the document of an edit.
func (b *builder) edit(j *job, v *version, current bool) {
	flags := []string{FlagEdit}
	switch {
	case v.redacted:
		flags = append(flags, FlagRedacted)
	case !current:
		flags = append(flags, FlagSuperseded)
	}
	b.doc(j, v, v, v.row.EventID, []string{ViewArchive}, flags...)
}

// doc adds one document: place and time are those of at, the text is that of says.
func (b *builder) doc(j *job, at, says *version, id string, views []string, flags ...string) {
	said := says.said()
	d := Doc{
		ID: id, NID: at.row.NID, TS: ClampTS(at.row.TS), Version: j.pos, Room: at.row.Room, Sender: at.sender, Type: at.evType,
		Kind: kindOf(at.evType, said), Views: views, Flags: flags,
	}
	parts := texts(at.evType, said)
	if said.Get("url").Exists() {
		d.Flags = append(d.Flags, FlagURL)
	}
	if said.Get("url").Type == gjson.String || said.Get("file.url").Type == gjson.String {
		d.Flags = append(d.Flags, FlagFile)
	}
	if media := b.fileOf(said); media != "" && b.wants(at.evType, said) {
		if text, done := j.files[media]; done {
			if text != "" {
				parts = append(parts, text)
				d.Flags = append(d.Flags, FlagText)
			}
		} else {
			j.wanted = append(j.wanted, store.WantedFile{NID: at.row.NID, Media: media, Due: b.now()})
		}
	}
	d.Texts = parts
	j.batch.Docs = append(j.batch.Docs, d)
}

// wants tells whether text may be found in a message's file.
func (b *builder) wants(evType string, c gjson.Result) bool {
	if b.readable == nil || evType != "m.room.message" || c.Get("msgtype").Str != "m.file" {
		return false
	}
	name := c.Get("filename").Str
	if name == "" {
		name = c.Get("body").Str
	}
	return b.readable(c.Get("info.mimetype").Str, name)
}

// readFiles reads the texts that were found in the files of all versions.
func (b *builder) readFiles(j *job) error {
	var media []string
	for _, v := range j.rows {
		if v.indexed() {
			if m := b.fileOf(v.said()); m != "" && b.wants(v.evType, v.said()) {
				media = append(media, m)
			}
		}
	}
	if len(media) == 0 {
		return nil
	}
	return j.tx.SearchFiles(media, func(f store.SearchFile) { j.files[f.Media] = string(f.Text) })
}

// Marshal is how engines keep a State.
func (s State) Marshal() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		return []byte("{}") // a struct of numbers always has a form
	}
	return b
}

// ParseState reads what Marshal wrote; ok is false for anything else.
func ParseState(b []byte) (s State, ok bool) {
	return s, json.Unmarshal(b, &s) == nil && s.Format != 0
}
