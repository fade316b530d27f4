package extract

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/text/encoding/simplifiedchinese"
)

func TestMain(m *testing.M) {
	Child()
	os.Exit(m.Run())
}

// packed makes a zip archive of names and contents.
func packed(t testing.TB, parts ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i+1 < len(parts); i += 2 {
		w, err := z.Create(parts[i])
		if err == nil {
			_, err = w.Write([]byte(parts[i+1]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// simplePDF makes a PDF of one page.
func simplePDF(text string) []byte {
	var b bytes.Buffer
	var at []int
	object := func(s string) {
		at = append(at, b.Len())
		fmt.Fprintf(&b, "%d 0 obj\n%s\nendobj\n", len(at), s)
	}
	b.WriteString("%PDF-1.4\n")
	object("<< /Type /Catalog /Pages 2 0 R >>")
	object("<< /Type /Pages /Kids [3 0 R] /Count 1 >>")
	object("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>")
	stream := "BT /F1 12 Tf 20 200 Td (" + text + ") Tj ET"
	object(fmt.Sprintf("<< /Length %d >>\nstream\n%s\nendstream", len(stream), stream))
	object("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
	xref := b.Len()
	fmt.Fprintf(&b, "xref\n0 %d\n0000000000 65535 f \n", len(at)+1)
	for _, n := range at {
		fmt.Fprintf(&b, "%010d 00000 n \n", n)
	}
	fmt.Fprintf(&b, "trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n", len(at)+1, xref)
	return b.Bytes()
}

func runner(t *testing.T) *Runner {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &Runner{Program: program, Memory: 512 << 20, Timeout: 4 * time.Second, MaxSize: 50 << 20}
}

func TestText(t *testing.T) {
	gb, err := simplifiedchinese.GB18030.NewEncoder().Bytes([]byte("姓名,工号\n王小明,10086"))
	if err != nil {
		t.Fatal(err)
	}
	r := runner(t)
	for _, tc := range []struct {
		name, contentType string
		file              []byte
		want              []string
	}{
		{"a.pdf", "application/pdf", simplePDF("Quarterly report 2026"), []string{"Quarterly report 2026"}},
		{"a.docx", "", packed(t, "word/document.xml", `<w:document xmlns:w="w"><w:body><w:p><w:r><w:t>年度</w:t></w:r><w:r><w:t>预算</w:t></w:r></w:p><w:p><w:r><w:t>second</w:t><w:tab/><w:t>part</w:t></w:r></w:p></w:body></w:document>`, "word/header1.xml", `<w:hdr xmlns:w="w"><w:p><w:t>机密</w:t></w:p></w:hdr>`), []string{"年度预算", "second part", "机密"}},
		{"a.xlsx", "", packed(t, "xl/sharedStrings.xml", `<sst><si><t>部门</t></si><si><r><t>销售</t></r><r><t>额</t></r></si></sst>`, "xl/workbook.xml", `<workbook><sheets><sheet name="第一季度"/></sheets></workbook>`, "xl/worksheets/sheet1.xml", `<worksheet><sheetData><row><c t="s"><v>0</v></c><c><v>48000.5</v></c><c t="inlineStr"><is><t>inline</t></is></c></row></sheetData></worksheet>`), []string{"部门", "销售额", "第一季度", "48000.5", "inline"}},
		{"a.pptx", "", packed(t, "ppt/slides/slide2.xml", `<p:sld xmlns:a="a" xmlns:p="p"><a:p><a:t>second slide</a:t></a:p></p:sld>`, "ppt/slides/slide1.xml", `<p:sld xmlns:a="a" xmlns:p="p"><a:p><a:t>first slide</a:t></a:p></p:sld>`), []string{"first slide\n\nsecond slide"}},
		{"a.odt", "", packed(t, "content.xml", `<office:document-content xmlns:office="o" xmlns:text="t"><office:styles>hidden</office:styles><office:body><text:p>open<text:s/>document</text:p></office:body></office:document-content>`), []string{"open document"}},
		{"a.html", "text/html", []byte(`<html><style>p{}</style><script>var x = "no"</script><p>Hello <b>wo</b>rld &amp; 你好</p><p>next</p></html>`), []string{"Hello world & 你好\nnext"}},
		{"a.csv", "text/csv", gb, []string{"王小明,10086"}},
		{"a.txt", "text/plain", []byte("\xff\xfe\x60\x4f\x7d\x59"), []string{"你好"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := r.Text(t.Context(), Kind(tc.contentType, tc.name), bytes.NewReader(tc.file), int64(len(tc.file)))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("%q is not in %q", want, got)
				}
			}
			if strings.Contains(got, "hidden") || strings.Contains(got, "var x") {
				t.Errorf("what is not shown is in %q", got)
			}
		})
	}
}

// TestHostile gives files that are broken or made to do harm: each ends soon, and no error says to try again.
func TestHostile(t *testing.T) {
	good := simplePDF("Quarterly report 2026")
	bomb := packed(t, "word/document.xml", "<w:document><w:p><w:t>"+strings.Repeat("bomb ", 60<<20/5)+"</w:t></w:p></w:document>")
	deep := packed(t, "word/document.xml", strings.Repeat("<w:p>", 2_000_000))
	entities := packed(t, "word/document.xml", `<!DOCTYPE l [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><w:t>&b;</w:t>`)
	r := runner(t)
	for name, file := range map[string][]byte{
		"cut.pdf": good[:len(good)/2], "empty.pdf": {}, "no.pdf": []byte("no PDF at all"), "loop.pdf": bytes.Replace(good, []byte("/Kids [3 0 R]"), []byte("/Kids [2 0 R]"), 1),
		"huge.pdf": bytes.Replace(good, []byte("/Count 1"), []byte("/Count 999999999"), 1), "xref.pdf": bytes.Replace(good, []byte("0 6\n"), []byte("0 2000000000\n"), 1),
		"bomb.docx": bomb, "deep.docx": deep, "entities.docx": entities, "no.xlsx": []byte("PK\x03\x04 no"), "empty.pptx": packed(t),
		"deep.html": []byte(strings.Repeat("<div>", 1_000_000)), "bytes.txt": bytes.Repeat([]byte{0xff, 0, 0x80}, 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			got, err := r.Text(t.Context(), Kind("", name), bytes.NewReader(file), int64(len(file)))
			if err != nil && !errors.Is(err, ErrNoText) {
				t.Errorf("it would be tried again: %v", err)
			}
			if len(got) > MaxText {
				t.Errorf("%d bytes of text", len(got))
			}
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
	t.Run("size", func(t *testing.T) {
		if _, err := r.Text(t.Context(), "text", strings.NewReader("x"), 51<<20); !errors.Is(err, ErrNoText) {
			t.Errorf("a file that is too large: %v", err)
		}
	})
	t.Run("time", func(t *testing.T) {
		quick := *r
		quick.Timeout = time.Millisecond
		if _, err := quick.Text(t.Context(), "word", bytes.NewReader(bomb), int64(len(bomb))); !errors.Is(err, ErrNoText) {
			t.Errorf("no time: %v", err)
		}
	})
	t.Run("memory", func(t *testing.T) {
		small := *r
		small.Memory = 40 << 20
		big := bytes.Repeat([]byte("text "), 8<<20)
		if _, err := small.Text(t.Context(), "text", bytes.NewReader(big), int64(len(big))); !errors.Is(err, ErrNoText) {
			t.Errorf("no memory: %v", err)
		}
	})
}
