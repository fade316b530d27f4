package store

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// conn is one dialect's connection inside a transaction. Arguments are int64, string, []byte, nil, []string or []int64.
type conn interface {
	exec(sql string, args []any) (int64, error)
	query(sql string, args []any, fn func(*Row) error) error
	// ahead is query where the answer may come with that of the next statement that has one.
	ahead(sql string, args []any, fn func(*Row) error) error
	insert(q *insertSQL, rows int, vals func(i int) []any) error
	dialect() dialect
}

type dialect int

const (
	dialectSQLite dialect = iota
	dialectPostgres
)

// Tx is a transaction. It belongs to one goroutine.
type Tx struct {
	c       conn
	entries []Entry
	locked  bool  // the head row is held
	head    int64 // last position given
	nid     int64 // last event number given

	s        *Store    // that follows the log; nil where nothing is read along
	found    int64     // the head when it was locked
	foundNID int64     // the newest event then
	asked    time.Time // when the lock was asked for
	along    []Entry   // what other processes wrote and this one had not applied

	hurried bool // no riders behind this: see Hurry
}

// Row is one row of a result, valid during the call that got it.
type Row struct {
	scan func(dest []any) error
}

// Scan copies the row's columns into dest: *int64, *int, *bool (from 0 and 1), *string and named string types, *[]byte,
// *Content, **string and **int64 for columns that may be NULL.
func (r *Row) Scan(dest ...any) error { return r.scan(dest) }

// Exec runs a statement and returns the number of rows it touched.
func (tx *Tx) Exec(sql string, args ...any) (int64, error) {
	conv, err := convertArgs(args)
	if err != nil {
		return 0, err
	}
	return tx.c.exec(rewrite(tx.c.dialect(), sql), conv)
}

// Get scans the first row of a query into dest and tells whether there was one.
func (tx *Tx) Get(dest []any, sql string, args ...any) (bool, error) {
	found := false
	err := tx.Each(sql, args, func(r *Row) error {
		if found {
			return nil
		}
		found = true
		return r.Scan(dest...)
	})
	return found, err
}

// Each runs fn for every row of a query. fn runs no other statement of the same Tx.
func (tx *Tx) Each(sql string, args []any, fn func(r *Row) error) error {
	conv, err := convertArgs(args)
	if err != nil {
		return err
	}
	return tx.c.query(rewrite(tx.c.dialect(), sql), conv, fn)
}

// ColType is the type of a column in a bulk insert.
type ColType int

// The column types of the schema.
const (
	Int ColType = iota
	Text
	Bytes
)

// Col names a column and its type.
type Col struct {
	Name string
	Type ColType
}

// insertSQL is a bulk insert, prepared once for each (table, columns, suffix).
type insertSQL struct {
	sql  string
	cols []Col
}

var inserts sync.Map // insertKey -> *insertSQL: constants of the program, so bounded

type insertKey struct {
	d             dialect
	table, suffix string
	cols          string
}

// Insert adds rows in bulk: one statement over arrays on PostgreSQL, one prepared statement on SQLite. vals gives the
// values of row i in the order of cols. suffix is for example "ON CONFLICT DO NOTHING".
func (tx *Tx) Insert(table string, cols []Col, rows int, vals func(i int) []any, suffix string) error {
	if rows == 0 {
		return nil
	}
	var names strings.Builder
	for i, c := range cols {
		if i > 0 {
			names.WriteString(", ")
		}
		names.WriteString(c.Name)
	}
	key := insertKey{tx.c.dialect(), table, suffix, names.String()}
	v, ok := inserts.Load(key)
	if !ok {
		v, _ = inserts.LoadOrStore(key, &insertSQL{sql: insertStatement(key, cols), cols: cols})
	}
	return tx.c.insert(v.(*insertSQL), rows, func(i int) []any { return vals(i) })
}

func insertStatement(k insertKey, cols []Col) string {
	var b strings.Builder
	fmt.Fprintf(&b, "INSERT INTO %s (%s) ", k.table, k.cols)
	if k.d == dialectPostgres {
		b.WriteString("SELECT ")
	} else {
		b.WriteString("VALUES (")
	}
	for i, c := range cols {
		if i > 0 {
			b.WriteString(", ")
		}
		if k.d == dialectPostgres {
			fmt.Fprintf(&b, "unnest($%d::%s[])", i+1, [...]string{"bigint", "text", "bytea"}[c.Type])
		} else {
			fmt.Fprintf(&b, "?%d", i+1)
		}
	}
	if k.d != dialectPostgres {
		b.WriteByte(')')
	}
	b.WriteByte(' ')
	b.WriteString(k.suffix)
	return b.String()
}

// convertArg brings an argument into the few types that both dialects bind.
func convertArg(a any) (any, error) {
	switch v := a.(type) {
	case nil:
		return nil, nil
	case int64:
		return v, nil
	case int:
		return int64(v), nil
	case bool:
		if v {
			return int64(1), nil
		}
		return int64(0), nil
	case string:
		return v, checkText(v)
	case []byte:
		if v == nil {
			return nil, nil
		}
		return v, nil
	case Content:
		if v == nil {
			return nil, nil
		}
		return encodeContent(v), nil
	case *string:
		if v == nil {
			return nil, nil
		}
		return *v, checkText(*v)
	case *int64:
		if v == nil {
			return nil, nil
		}
		return *v, nil
	case []string:
		for _, s := range v {
			if err := checkText(s); err != nil {
				return nil, err
			}
		}
		return v, nil
	case []int64:
		return v, nil
	}
	rv := reflect.ValueOf(a)
	switch rv.Kind() {
	case reflect.String:
		return rv.String(), checkText(rv.String())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return rv.Int(), nil
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return int64(rv.Uint()), nil
	case reflect.Slice:
		if rv.Type().Elem().Kind() == reflect.String {
			out := make([]string, rv.Len())
			for i := range out {
				out[i] = rv.Index(i).String()
				if err := checkText(out[i]); err != nil {
					return nil, err
				}
			}
			return out, nil
		}
	}
	return nil, fmt.Errorf("store: cannot bind %T", a)
}

func convertArgs(args []any) ([]any, error) {
	out := make([]any, len(args))
	for i, a := range args {
		v, err := convertArg(a)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

// checkText refuses what PostgreSQL's text cannot hold, so that both databases answer alike and never with a 500.
func checkText(s string) error {
	if strings.IndexByte(s, 0) >= 0 {
		return mxerr.InvalidParam("the character U+0000 is not allowed in identifiers")
	}
	if !utf8.ValidString(s) {
		return mxerr.InvalidParam("identifiers must be valid UTF-8")
	}
	return nil
}

var rewrites sync.Map // rewriteKey -> string

type rewriteKey struct {
	d   dialect
	sql string
}

// rewrite expands the few macros in which the dialects differ.
func rewrite(d dialect, sql string) string {
	if d == dialectPostgres && strings.IndexByte(sql, '@') < 0 {
		return sql
	}
	key := rewriteKey{d, sql}
	if v, ok := rewrites.Load(key); ok {
		return v.(string)
	}
	out := expand(d, sql)
	rewrites.Store(key, out)
	return out
}

func expand(d dialect, sql string) string {
	var b strings.Builder
	inString := false
	for i := 0; i < len(sql); i++ {
		c := sql[i]
		rest := sql[i:]
		switch {
		case c == '\'':
			inString = !inString
			b.WriteByte(c)
		case inString:
			b.WriteByte(c)
		case c == '@' && (strings.HasPrefix(rest, "@text(") || strings.HasPrefix(rest, "@int(")):
			end := strings.IndexByte(rest, ')')
			open := strings.IndexByte(rest, '(')
			param := rest[open+1 : end]
			typ := "bigint"
			if rest[1] == 't' {
				typ = "text"
			}
			if d == dialectPostgres {
				b.WriteString("(SELECT unnest(" + param + "::" + typ + "[]))")
			} else {
				b.WriteString("(SELECT value FROM json_each(?" + param[1:] + "))")
			}
			i += end
		case c == '@' && strings.HasPrefix(rest, "@isint("):
			end := strings.IndexByte(rest, ')')
			param := rest[len("@isint("):end]
			if d == dialectPostgres {
				b.WriteString("= ANY(" + param + "::bigint[])")
			} else {
				b.WriteString("IN (SELECT value FROM json_each(?" + param[1:] + "))")
			}
			i += end
		case c == '@' && strings.HasPrefix(rest, "@forupdate"):
			if d == dialectPostgres {
				b.WriteString("FOR UPDATE")
			}
			i += len("@forupdate") - 1
		case c == '@' && strings.HasPrefix(rest, "@skiplocked"):
			if d == dialectPostgres {
				b.WriteString("FOR UPDATE SKIP LOCKED")
			}
			i += len("@skiplocked") - 1
		case c == '$' && d == dialectSQLite && i+1 < len(sql) && sql[i+1] >= '0' && sql[i+1] <= '9':
			b.WriteByte('?')
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// jsonList is how a list reaches SQLite's json_each.
func jsonList(a any) (string, error) {
	switch v := a.(type) {
	case []int64:
		b := make([]byte, 0, 2+8*len(v))
		b = append(b, '[')
		for i, n := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, n, 10)
		}
		return string(append(b, ']')), nil
	default:
		b, err := json.Marshal(v)
		return string(b), err
	}
}

// assign stores a scanned column into a destination that the drivers do not know. get returns nil for NULL.
func assign(dest any, null bool, getInt func() int64, getText func() string, getBytes func() []byte) error {
	switch d := dest.(type) {
	case *int64:
		*d = getInt()
	case *int:
		*d = int(getInt())
	case *bool:
		*d = getInt() != 0
	case *string:
		*d = getText()
	case *[]byte:
		if null {
			*d = nil
		} else {
			*d = getBytes()
		}
	case *Content:
		if null {
			*d = nil
			return nil
		}
		c, err := decodeContent(getBytes())
		*d = c
		return err
	case **string:
		*d = nil
		if !null {
			s := getText()
			*d = &s
		}
	case **int64:
		*d = nil
		if !null {
			n := getInt()
			*d = &n
		}
	default:
		rv := reflect.ValueOf(dest)
		if rv.Kind() != reflect.Pointer || rv.IsNil() {
			return fmt.Errorf("store: cannot scan into %T", dest)
		}
		el := rv.Elem()
		switch el.Kind() {
		case reflect.String:
			el.SetString(getText())
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			el.SetInt(getInt())
		case reflect.Uint8, reflect.Uint16, reflect.Uint32:
			el.SetUint(uint64(getInt()))
		default:
			return fmt.Errorf("store: cannot scan into %T", dest)
		}
	}
	return nil
}
