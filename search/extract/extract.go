// Package extract finds the text in files: PDF, Word, Excel, PowerPoint, OpenDocument, HTML, plain text, CSV. It reads what
// strangers made, so it runs in a process of its own with limits on memory and time (see Runner).
package extract

import (
	"archive/zip"
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime"
	"path"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/ledongthuc/pdf"
	"golang.org/x/net/html"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// Limits of one file.
const (
	MaxText     = 1 << 20   // bytes of text that are kept
	maxUnpacked = 128 << 20 // bytes that are unpacked from one file
	maxParts    = 5000      // parts of a packed file that are looked at
	maxPages    = 5000      // pages of a PDF
)

// ErrNoText says that a file is not what it claims to be, or damaged.
var ErrNoText = errors.New("the file is damaged or not of its type")

// kinds are the forms of files by the end of the name.
var kinds = map[string]string{
	".pdf": "pdf", ".docx": "word", ".docm": "word", ".dotx": "word", ".xlsx": "sheet", ".xlsm": "sheet", ".pptx": "slides", ".pptm": "slides", ".ppsx": "slides",
	".odt": "open", ".ods": "open", ".odp": "open", ".html": "html", ".htm": "html", ".xhtml": "html",
	".txt": "text", ".csv": "text", ".tsv": "text", ".md": "text", ".log": "text", ".json": "text", ".xml": "text", ".yaml": "text", ".yml": "text", ".ini": "text", ".sql": "text",
}

// types are the forms of files by content type.
var types = map[string]string{
	"application/pdf": "pdf",
	"application/vnd.openxmlformats-officedocument.wordprocessingml.document":   "word",
	"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet":         "sheet",
	"application/vnd.openxmlformats-officedocument.presentationml.presentation": "slides",
	"application/vnd.oasis.opendocument.text":                                   "open",
	"application/vnd.oasis.opendocument.spreadsheet":                            "open",
	"application/vnd.oasis.opendocument.presentation":                           "open",
	"text/html": "html", "application/xhtml+xml": "html", "application/json": "text", "application/xml": "text",
}

// Kind tells how a file is read, by its content type or else by its name; "" for files without text.
func Kind(contentType, filename string) string {
	if t, _, err := mime.ParseMediaType(contentType); err == nil {
		if k := types[t]; k != "" {
			return k
		}
		if strings.HasPrefix(t, "text/") {
			return "text"
		}
	}
	return kinds[strings.ToLower(path.Ext(filename))]
}

// Text finds the text of a file of a kind.
func Text(kind string, file []byte) (text string, err error) {
	defer func() {
		if p := recover(); p != nil { // readers of damaged files may panic
			text, err = "", ErrNoText
		}
	}()
	w := &writer{}
	switch kind {
	case "pdf":
		err = readPDF(w, file)
	case "word":
		err = readPacked(w, file, wordParts, office)
	case "slides":
		err = readPacked(w, file, slideParts, office)
	case "sheet":
		err = readPacked(w, file, sheetParts, sheet)
	case "open":
		err = readPacked(w, file, openParts, openText)
	case "html":
		err = readHTML(w, plainText(file))
	case "text":
		w.add(plainText(file))
	default:
		return "", fmt.Errorf("files of the kind %q have no text", kind)
	}
	if err != nil && !errors.Is(err, errFull) {
		return "", err
	}
	return strings.TrimSpace(w.text.String()), nil
}

var errFull = errors.New("there is enough text")

// writer collects text up to the limit.
type writer struct{ text strings.Builder }

func (w *writer) add(s string) error {
	left := MaxText - w.text.Len()
	if len(s) > left {
		for left > 0 && !utf8.RuneStart(s[left]) {
			left--
		}
		w.text.WriteString(strings.ToValidUTF8(s[:left], ""))
		return errFull
	}
	w.text.WriteString(strings.ToValidUTF8(s, ""))
	return nil
}

// plainText reads bytes as UTF-8, as UTF-16 where a mark says so, else as GB 18030.
func plainText(b []byte) string {
	switch {
	case bytes.HasPrefix(b, []byte{0xef, 0xbb, 0xbf}):
		return string(b[3:])
	case bytes.HasPrefix(b, []byte{0xff, 0xfe}), bytes.HasPrefix(b, []byte{0xfe, 0xff}):
		units := make([]uint16, 0, len(b)/2)
		for i := 2; i+1 < len(b); i += 2 {
			if b[0] == 0xff {
				units = append(units, uint16(b[i])|uint16(b[i+1])<<8)
			} else {
				units = append(units, uint16(b[i+1])|uint16(b[i])<<8)
			}
		}
		return string(utf16.Decode(units))
	case utf8.Valid(b):
		return string(b)
	}
	if out, err := simplifiedchinese.GB18030.NewDecoder().Bytes(b); err == nil {
		return string(out)
	}
	return strings.ToValidUTF8(string(b), "")
}

// readHTML takes the text between tags, but for scripts and styles.
func readHTML(w *writer, s string) error {
	z := html.NewTokenizer(strings.NewReader(s))
	z.SetMaxBuf(1 << 20)
	skip := 0
	for {
		switch z.Next() {
		case html.ErrorToken:
			if errors.Is(z.Err(), io.EOF) {
				return nil
			}
			return ErrNoText
		case html.StartTagToken:
			if name, _ := z.TagName(); hiddenTag(string(name)) {
				skip++
			}
		case html.EndTagToken:
			name, _ := z.TagName()
			if hiddenTag(string(name)) && skip > 0 {
				skip--
			}
			if err := w.add(separator(string(name))); err != nil {
				return err
			}
		case html.SelfClosingTagToken:
			if err := w.add(" "); err != nil {
				return err
			}
		case html.TextToken:
			if skip > 0 {
				continue
			}
			if err := w.add(string(z.Text())); err != nil {
				return err
			}
		}
	}
}

func hiddenTag(name string) bool { return name == "script" || name == "style" || name == "template" }

// separator keeps words of different blocks apart, and words whose letters are set differently together.
func separator(tag string) string {
	switch tag {
	case "a", "b", "i", "u", "s", "em", "strong", "span", "font", "code", "small", "sub", "sup", "mark":
		return ""
	}
	return "\n"
}

var (
	wordParts  = regexp.MustCompile(`^word/(document|header\d*|footer\d*|footnotes|endnotes|comments)\.xml$`)
	slideParts = regexp.MustCompile(`^ppt/(slides/slide|notesSlides/notesSlide|comments/comment)\d+\.xml$`)
	sheetParts = regexp.MustCompile(`^xl/(sharedStrings|workbook|worksheets/sheet\d+|comments\d*)\.xml$`)
	openParts  = regexp.MustCompile(`^content\.xml$`)
	number     = regexp.MustCompile(`\d+`)
)

// readPacked reads the XML parts of a packed document, in the order of their numbers.
func readPacked(w *writer, file []byte, parts *regexp.Regexp, read func(w *writer, d *xml.Decoder) error) error {
	z, err := zip.NewReader(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return ErrNoText
	}
	var list []*zip.File
	for _, f := range z.File {
		if parts.MatchString(f.Name) && len(list) < maxParts {
			list = append(list, f)
		}
	}
	if len(list) == 0 {
		return ErrNoText
	}
	key := func(name string) int {
		n, err := strconv.Atoi(number.FindString(path.Base(name)))
		if err != nil {
			return -1
		}
		return n
	}
	sort.SliceStable(list, func(i, j int) bool { return key(list[i].Name) < key(list[j].Name) })
	left := int64(maxUnpacked)
	for _, f := range list {
		r, err := f.Open()
		if err != nil {
			return ErrNoText
		}
		limited := &io.LimitedReader{R: r, N: left}
		d := xml.NewDecoder(limited)
		d.Strict = false
		err = read(w, d)
		left = limited.N
		_ = r.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			if left <= 0 {
				return errFull // what was read up to here counts
			}
			if errors.Is(err, errFull) {
				return err
			}
			return ErrNoText
		}
		if err := w.add("\n"); err != nil {
			return err
		}
	}
	return nil
}

// office reads the text runs of Word and PowerPoint.
func office(w *writer, d *xml.Decoder) error {
	inText := false
	for {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			switch t.Name.Local {
			case "t":
				inText = true
			case "tab", "br", "cr":
				err = w.add(" ")
			}
		case xml.EndElement:
			switch t.Name.Local {
			case "t":
				inText = false
			case "p", "tc":
				err = w.add("\n")
			}
		case xml.CharData:
			if inText {
				err = w.add(string(t))
			}
		}
		if err != nil {
			return err
		}
	}
}

// sheet reads shared strings, cells that hold a value of their own, and names of sheets. Numbers of shared strings are not
// values.
func sheet(w *writer, d *xml.Decoder) error {
	shared, inText, inValue := false, false, false
	for {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			switch t.Name.Local {
			case "c":
				shared = attr(t, "t") == "s"
			case "t":
				inText = true
			case "v":
				inValue = !shared
			case "sheet":
				err = w.add(attr(t, "name") + "\n")
			}
		case xml.EndElement:
			switch t.Name.Local {
			case "t":
				inText = false
			case "v":
				inValue = false
			case "si", "is", "c":
				err = w.add(" ")
			case "row":
				err = w.add("\n")
			}
		case xml.CharData:
			if inText || inValue {
				err = w.add(string(t))
			}
		}
		if err != nil {
			return err
		}
	}
}

func attr(t xml.StartElement, name string) string {
	for _, a := range t.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// openText reads the body of an OpenDocument file.
func openText(w *writer, d *xml.Decoder) error {
	body := 0
	for {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			switch {
			case t.Name.Local == "body":
				body++
			case t.Name.Local == "s" || t.Name.Local == "tab" || t.Name.Local == "line-break":
				err = w.add(" ")
			}
		case xml.EndElement:
			switch t.Name.Local {
			case "body":
				body--
			case "p", "h", "table-cell":
				err = w.add("\n")
			}
		case xml.CharData:
			if body > 0 {
				err = w.add(string(t))
			}
		}
		if err != nil {
			return err
		}
	}
}

// readPDF reads the pages of a PDF.
func readPDF(w *writer, file []byte) error {
	r, err := pdf.NewReader(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return ErrNoText
	}
	fonts := map[string]*pdf.Font{}
	for i := 1; i <= min(r.NumPage(), maxPages); i++ {
		text, err := pageText(r, i, fonts)
		if err != nil {
			continue // the other pages may be whole
		}
		if err := w.add(text + "\n"); err != nil {
			return err
		}
	}
	return nil
}

func pageText(r *pdf.Reader, i int, fonts map[string]*pdf.Font) (text string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = ErrNoText
		}
	}()
	page := r.Page(i)
	if page.V.IsNull() {
		return "", nil
	}
	clear(fonts) // names of fonts are those of a page
	for _, name := range page.Fonts() {
		f := page.Font(name)
		fonts[name] = &f
	}
	return page.GetPlainText(fonts)
}
