package mta

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/emersion/go-sasl"
)

// maxAuthSteps bounds the challenges of one AUTH. Ours: no mechanism needs more.
const maxAuthSteps = 8

// maxIterations bounds the work a host can ask of SCRAM. Ours: about a second.
const maxIterations = 5_000_000

// authenticate logs in, as the label of the relay URL says. Only inside TLS.
func (s *session) authenticate() error {
	switch {
	case s.tls == nil:
		return &setupError{noLogin("Refuse to AUTH over insecure channel"), blameRelay}
	case len(s.ext.auth) == 0:
		return &setupError{noLogin("AUTH not advertised"), blameRelay}
	}
	// NUL would make two values of one (RFC 4616), and no login has a line end.
	if strings.ContainsAny(s.secret.user+s.secret.password, "\r\n\x00") {
		return &setupError{errUnfit, blameRelay}
	}
	mech := s.mechanism()
	if mech == nil {
		return &setupError{noLogin("no supported AUTH method"), blameRelay}
	}
	name, first, err := mech.Start()
	if err != nil {
		return &setupError{noLogin("AUTH failed"), blameRelay}
	}
	line := "AUTH " + name
	if first != nil {
		line += " " + initialResponse(first)
	}
	shown := "AUTH " + name
	if first != nil {
		shown += " ********"
	}
	s.traceOut(shown)
	err = s.speakAuth(mech, line)
	s.tellAuth(err)
	return err
}

// speakAuth carries the dialogue of a login out; line is how it begins.
func (s *session) speakAuth(mech sasl.Client, line string) error {
	for range maxAuthSteps {
		if err := s.w.command(line); err != nil {
			return &setupError{err, blameRelay}
		}
		rep, err := s.exchange(s.e.opt.Timeouts.Hello, true)
		if err != nil {
			return &setupError{err, blameRoute}
		}
		if sc, ok := mech.(*scram); rep.ok() && ok && !sc.done {
			return &setupError{noLogin("AUTH rejected: the host did not prove that it knows us"), blameRelay}
		}
		if rep.ok() {
			return nil
		}
		if rep.code != 334 || len(rep.lines) == 0 {
			return &setupError{rejected("AUTH", &rep), blameRelay}
		}
		line = "*" // RFC 4954 section 4: gives up
		challenge, err := base64.StdEncoding.DecodeString(rep.lines[0])
		if err != nil {
			continue
		}
		if answer, err := mech.Next(challenge); err == nil {
			line = base64.StdEncoding.EncodeToString(answer)
		}
		s.traceOut("********")
	}
	return &setupError{noLogin("AUTH rejected: too many steps"), blameRelay}
}

// initialResponse is for the AUTH line (RFC 4954 section 4).
func initialResponse(b []byte) string {
	if len(b) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(b)
}

// mechanism is the first that both know; nil: none. To a host whose name was
// not verified the password itself is shown last.
func (s *session) mechanism() sasl.Client {
	order := []string{"PLAIN", "LOGIN", "SCRAM-SHA-256"}
	if !s.relay.policy.verify {
		order = []string{"SCRAM-SHA-256", "PLAIN", "LOGIN"}
	}
	user, password := s.secret.user, s.secret.password
	for _, name := range order {
		if !slices.Contains(s.ext.auth, name) {
			continue
		}
		switch name {
		case "PLAIN":
			return sasl.NewPlainClient("", user, password)
		case "LOGIN":
			return &login{answers: []string{user, password}}
		case "SCRAM-SHA-256":
			return newScram(user, password, rand.Text())
		}
	}
	return nil
}

// login is LOGIN. Hosts prompt for user and password in this order, in words
// that differ; sasl.NewLoginClient insists on one spelling.
type login struct{ answers []string }

// Start implements sasl.Client.
func (c *login) Start() (string, []byte, error) { return sasl.Login, nil, nil }

// Next implements sasl.Client.
func (c *login) Next([]byte) ([]byte, error) {
	if len(c.answers) == 0 {
		return nil, sasl.ErrUnexpectedServerChallenge
	}
	answer := c.answers[0]
	c.answers = c.answers[1:]
	return []byte(answer), nil
}

// scram is the client's side of SCRAM-SHA-256 without channel binding (RFC 5802,
// RFC 7677).
type scram struct {
	user, password string
	nonce          string
	first          string // client-first-message-bare
	serverSig      []byte
	done           bool
}

var errScram = errors.New("scram: the host does not follow the protocol")

func newScram(user, password, nonce string) *scram {
	return &scram{user: user, password: password, nonce: nonce}
}

// Start implements sasl.Client.
func (c *scram) Start() (string, []byte, error) {
	user := strings.NewReplacer("=", "=3D", ",", "=2C").Replace(c.user)
	c.first = "n=" + user + ",r=" + c.nonce
	return "SCRAM-SHA-256", []byte("n,," + c.first), nil
}

// Next implements sasl.Client.
func (c *scram) Next(challenge []byte) ([]byte, error) {
	fields := map[byte]string{}
	for f := range strings.SplitSeq(string(challenge), ",") {
		if len(f) >= 2 && f[1] == '=' {
			fields[f[0]] = f[2:]
		}
	}
	if c.serverSig != nil {
		sig, err := base64.StdEncoding.DecodeString(fields['v'])
		if err != nil || !hmac.Equal(sig, c.serverSig) || c.done {
			return nil, errScram
		}
		c.done = true
		return []byte{}, nil
	}
	salt, err := base64.StdEncoding.DecodeString(fields['s'])
	n, nerr := strconv.Atoi(fields['i'])
	nonce := fields['r']
	_, mandatory := fields['m']
	if err != nil || nerr != nil || n < 1 || n > maxIterations || mandatory ||
		len(nonce) <= len(c.nonce) || !strings.HasPrefix(nonce, c.nonce) {
		return nil, errScram
	}
	salted, err := pbkdf2.Key(sha256.New, c.password, salt, n, sha256.Size)
	if err != nil {
		return nil, errScram
	}
	final := "c=biws,r=" + nonce
	text := c.first + "," + string(challenge) + "," + final
	clientKey := sign(salted, "Client Key")
	stored := sha256.Sum256(clientKey)
	proof := sign(stored[:], text)
	for i := range proof {
		proof[i] ^= clientKey[i]
	}
	c.serverSig = sign(sign(salted, "Server Key"), text)
	return []byte(final + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

func sign(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
