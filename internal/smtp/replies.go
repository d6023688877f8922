package smtp

// The replies that are always the same. Texts are those of OpenSMTPD, codes
// those of the RFCs named.
const (
	replyOK             = "250 2.0.0 Ok"
	replyReset          = "250 2.0.0 Reset state"
	replyRcptOK         = "250 2.1.5 Destination address valid: Recipient ok"
	replyData           = `354 Enter mail, end with "." on a line by itself`
	replyBye            = "221 2.0.0 Bye"
	replyVRFY           = "252 2.5.2 Cannot VRFY user, but will accept message and attempt delivery" // RFC 5321 section 3.5.3
	replyStartTLS       = "220 2.0.0 Ready to start TLS"
	replyAuthOK         = "235 2.7.0 Authentication succeeded" // RFC 4954 section 4
	replySequence       = "503 5.5.1 Invalid command: Command not allowed at this point."
	replyUnsupported    = "503 5.5.1 Invalid command: Command not supported"
	replyUnknown        = "500 5.5.1 Invalid command: Command unrecognized"
	replyNotHTTP        = "500 5.5.1 Invalid command: This is a mail server"
	replyWiz            = "500 5.5.1 Invalid command: this feature is not supported yet ;-)"
	replyEXPN           = "502 5.5.1 Invalid command: Command not implemented"
	replyNoArguments    = "500 5.5.4 Invalid command arguments: command does not accept arguments."
	replyBadOctet       = "500 5.5.2 Syntax error: NUL or CR in a command"
	replyBareLF         = "500 5.5.2 Syntax error: a line ends with CR and LF" // RFC 5321 section 2.3.8
	replyDomain         = "501 5.5.4 Invalid command arguments: Invalid domain name"
	replySecured        = "503 5.5.1 Invalid command: Channel already secured"
	replyNoParameters   = "501 5.5.4 Invalid command arguments: No parameters allowed"
	replyNeedTLS        = "530 5.7.0 Must issue a STARTTLS command first" // RFC 3207 section 4
	replyNeedAuth       = "530 5.7.0 Must issue an AUTH command first"    // RFC 4954 section 6
	replyTooManyMails   = "452 4.5.3 Too many recipients: Too many messages sent"
	replyTooManyRcpts   = "452 4.5.3 Too many recipients: Too many recipients" // RFC 5321 section 4.5.3.1.10
	replySenderSyntax   = "553 5.1.0 Sender address syntax error"
	replyRcptSyntax     = "501 5.1.3 Recipient address syntax error"
	replySenderRejected = "550 5.7.1 Sender rejected" // RFC 6409 section 6.1
	replyNoRcpt         = "503 5.5.4 Invalid command arguments: No recipient specified"
	replyNeedBDAT       = "503 5.5.1 Invalid command: BODY=BINARYMIME needs BDAT" // RFC 3030 section 3
	replyShape          = "550 5.7.1 Delivery not authorized, message refused: Message is not RFC 2822 compliant"
	replyLoop           = "500 5.4.6 Routing loop detected: Loop detected"
	replyBigHeader      = "552 5.3.4 Message too big for system: Header too big"
	replyBare           = "550 5.6.0 Message refused: CR or LF that is not part of CRLF" // RFC 5321 section 2.3.8
	replyLineTooLong    = "500 5.0.0 Line too long"
	replyCommandTooLong = "500 5.0.0 Command line too long"
	replyTooManyCmds    = "421 4.7.0 Too many commands without a message"
	replyTemporary      = "451 4.3.0 Temporary failure"
	replyJoinedTLS      = "421 4.7.0 Commands after STARTTLS"
)
